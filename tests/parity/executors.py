"""What parity tests run models on: the executors that are exact, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from inference_svc.kernels.native.executor import NativeExecutor
from inference_svc.kernels.reference import ReferenceKernels
from inference_svc.layers.eager import EagerExecutor
from inference_svc.layers.executor import Executor
from inference_svc.models.definition import ModelDefinition

MakeExecutor = Callable[[ModelDefinition, bool], Executor]  # a model; whether no row may depend on the other rows


def reference(model: ModelDefinition, batch_invariant: bool) -> Executor:
    """Plain torch."""
    return EagerExecutor(model, ReferenceKernels(batch_invariant=batch_invariant), torch.float32)


def native_exact(model: ModelDefinition, batch_invariant: bool) -> Executor:
    """Compiled, in float32. Raises NativeUnavailable where it cannot be had."""
    return NativeExecutor(model, num_threads=2, exact=True, batch_invariant=batch_invariant)


def native(model: ModelDefinition, batch_invariant: bool) -> Executor:
    """Compiled, activations rounded: held to the bars of accuracy, not of parity. Raises NativeUnavailable."""
    return NativeExecutor(model, num_threads=2, exact=False, batch_invariant=batch_invariant)


# Those that compute in float32, and so are held to the bars of parity.
EXACT: Mapping[str, MakeExecutor] = {"reference": reference, "native-exact": native_exact}
ALL: Mapping[str, MakeExecutor] = {**EXACT, "native": native}
