"""Chooses, once at start, what runs the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference_svc.errors import InvalidRequest
from inference_svc.kernels.native.compiler import NativeUnavailable, load_code
from inference_svc.kernels.native.executor import NativeExecutor
from inference_svc.kernels.reference import ReferenceKernels
from inference_svc.layers.eager import EagerExecutor
from inference_svc.layers.executor import Executor
from inference_svc.models.definition import ModelDefinition

KERNELS = ("auto", "native", "native-exact", "reference")


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
        """
        notice = self.notice
        if self.name != "reference":
            try:
                native = NativeExecutor(
                    model,
                    num_threads=torch.get_num_threads(),
                    exact=self.name == "native-exact",
                    batch_invariant=self.batch_invariant,
                )
                return native, notice
            except NativeUnavailable as error:
                notice = _refused_or_told(error, self.is_required)
        return EagerExecutor(model, ReferenceKernels(batch_invariant=self.batch_invariant), self.dtype), notice


def choose_kernels(name: str, device: torch.device, *, batch_invariant: bool) -> KernelChoice:
    """Kernels by name: `auto` takes the native ones where they can be had, else the reference.

    Raises:
        InvalidRequest: unknown name, or native ones where they cannot be had.
    """
    if name not in KERNELS:
        raise InvalidRequest("kernels", f"kernels {name!r} do not exist: choose one of {', '.join(KERNELS)}")
    # The reference for exactness is float32; on CUDA the tensor cores' bfloat16 is the default.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    notice = ""
    if name != "reference":
        try:
            if device.type != "cpu":
                raise NativeUnavailable(f"there are none for {device.type}")
            load_code()
            is_exact = name == "native-exact"
            cache_dtype = torch.float32 if is_exact else torch.float16
            return KernelChoice(
                "native" if name == "auto" else name, name != "auto", batch_invariant, dtype, cache_dtype, ""
            )
        except NativeUnavailable as error:
            notice = _refused_or_told(error, name != "auto")
    return KernelChoice("reference", True, batch_invariant, dtype, dtype, notice)


def _refused_or_told(error: NativeUnavailable, is_required: bool) -> str:
    if is_required:
        raise InvalidRequest("kernels", f"native kernels cannot be had: {error}") from error
    return f"native kernels cannot be had: {error}"
