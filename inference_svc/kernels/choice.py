"""Chooses, once at start, what runs the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference_svc.errors import InvalidRequest
from inference_svc.kernels.native.compiler import NativeUnavailable, load_code
from inference_svc.kernels.native.executor import NativeExecutor
from inference_svc.kernels.reference import ReferenceKernels
from inference_svc.kernels.triton.availability import TritonUnavailable, check_triton
from inference_svc.layers.eager import EagerExecutor
from inference_svc.layers.executor import Executor
from inference_svc.models.definition import ModelDefinition

KERNELS = ("auto", "native", "native-exact", "triton", "triton-graphs", "reference")


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """Which kernels will run, before there is a model."""

    name: str  # one of KERNELS but `auto`
    is_required: bool  # no other kernels may run instead
    batch_invariant: bool
    dtype: torch.dtype  # of activations and hidden states
    cache_dtype: torch.dtype  # of keys and values
    notice: str  # why not faster ones; empty if they are the fastest

    def executor(self, model: ModelDefinition) -> tuple[Executor, str]:
        """What runs a model, and why nothing faster does.

        Raises:
            InvalidRequest: the kernels that are required cannot run this model.
            WeightsError: a file cannot be read any more.
        """
        notice = self.notice
        if self.name in ("native", "native-exact"):
            try:
                native = NativeExecutor(
                    model,
                    num_threads=torch.get_num_threads(),
                    exact=self.name == "native-exact",
                    batch_invariant=self.batch_invariant,
                )
                return native, notice
            except NativeUnavailable as error:
                notice = _refused_or_told("native", error, self.is_required)
        elif self.name != "reference":
            return self._triton_executor(model), notice
        return EagerExecutor(model, ReferenceKernels(batch_invariant=self.batch_invariant), self.dtype), notice

    def _triton_executor(self, model: ModelDefinition) -> Executor:
        # Only here: a plain install on a CPU has no triton.
        from inference_svc.kernels.triton.graphs import GraphExecutor
        from inference_svc.kernels.triton.kernels import TritonKernels
        from inference_svc.kernels.triton.weights import PackedWeights

        weights = PackedWeights(self.dtype)
        weights.load(model)
        kernels = TritonKernels(weights, batch_invariant=self.batch_invariant)
        runs = EagerExecutor if self.name == "triton" else GraphExecutor
        return runs(model, kernels, self.dtype)


def choose_kernels(name: str, device: torch.device, *, batch_invariant: bool) -> KernelChoice:
    """Kernels by name: `auto` takes native ones on a CPU, triton on CUDA, and where they cannot be had the reference.

    Raises:
        InvalidRequest: unknown name, or kernels that cannot be had here.
    """
    if name not in KERNELS:
        raise InvalidRequest("kernels", f"kernels {name!r} do not exist: choose one of {', '.join(KERNELS)}")
    # The reference for exactness is float32; on CUDA the tensor cores' bfloat16 is the default.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    is_required = name != "auto"
    if not is_required:
        name = "triton" if device.type == "cuda" else "native"
    notice = ""
    try:
        if name in ("native", "native-exact"):
            if device.type != "cpu":
                raise NativeUnavailable(f"there are none for {device.type}")
            load_code()
            cache_dtype = torch.float32 if name == "native-exact" else torch.float16
            return KernelChoice(name, is_required, batch_invariant, dtype, cache_dtype, "")
        if name != "reference":
            check_triton(device, dtype)
            return KernelChoice(name, is_required, batch_invariant, dtype, dtype, "")
    except (NativeUnavailable, TritonUnavailable) as error:
        notice = _refused_or_told(name, error, is_required)
    return KernelChoice("reference", True, batch_invariant, dtype, dtype, notice)


def _refused_or_told(name: str, error: Exception, is_required: bool) -> str:
    message = f"{name.partition('-')[0]} kernels cannot be had: {error}"
    if is_required:
        raise InvalidRequest("kernels", message) from error
    return message
