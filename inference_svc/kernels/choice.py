"""Chooses, once at start, which kernels run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference_svc.errors import InvalidRequest
from inference_svc.kernels.native import NativeKernels, NativeUnavailable
from inference_svc.kernels.operations import Kernels
from inference_svc.kernels.reference import ReferenceKernels


@dataclass(frozen=True, slots=True, eq=False)
class KernelChoice:
    """The kernels, and why not faster ones; the notice is empty if these are the fastest."""

    kernels: Kernels
    notice: str


def choose_kernels(name: str, device: torch.device, *, batch_invariant: bool) -> KernelChoice:
    """Kernels by name: `auto` takes the native ones where they can be built and falls back on the reference.

    Raises:
        InvalidRequest: unknown name, or `native` where it cannot be had.
    """
    if name not in ("auto", "reference", "native"):
        raise InvalidRequest("kernels", f"kernels {name!r} do not exist: choose auto, reference or native")
    if name == "reference":
        return KernelChoice(ReferenceKernels(batch_invariant=batch_invariant), "")
    try:
        if device.type != "cpu":
            raise NativeUnavailable(f"there are none for {device.type}")
        return KernelChoice(NativeKernels(batch_invariant=batch_invariant), "")
    except NativeUnavailable as error:
        if name == "native":
            raise InvalidRequest("kernels", f"native kernels cannot be had: {error}") from error
        return KernelChoice(ReferenceKernels(batch_invariant=batch_invariant), f"native kernels cannot be had: {error}")
