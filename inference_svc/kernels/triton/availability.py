"""Whether Triton's kernels run here; the one module beside `packing` that may be imported where there is no triton."""

from __future__ import annotations

import torch


class TritonUnavailable(Exception):
    """The kernels cannot run here; the message says why."""


def check_triton(device: torch.device, dtype: torch.dtype) -> None:
    """Run a small kernel: compiling it needs more than triton, of which a C compiler is most often missing.

    On a CPU kernels run in Triton's interpreter, for tests: where TRITON_INTERPRET was set before triton was imported.

    Raises:
        TritonUnavailable: there is no triton, or no device that is new enough, or the kernel does not run.
    """
    try:
        import triton
    except ImportError as error:
        raise TritonUnavailable(f"triton cannot be imported: {error}") from error
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise TritonUnavailable(f"they run on CUDA, and the device is {device.type}")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise TritonUnavailable("they need a device with bfloat16: of compute capability 8.0 or above")
    from inference_svc.kernels.triton.elementwise import rms_norm

    try:
        normed = rms_norm(torch.ones((1, 16), dtype=dtype, device=device), torch.ones(16, device=device), 0.0)
        is_right = bool((normed == 1.0).all())
    except Exception as error:  # of a compiler, a driver, a device that is too old: whatever it is, there are none here
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise TritonUnavailable(f"a kernel does not run on {device}: {last}") from error
    if not is_right:
        raise TritonUnavailable(f"a kernel computes nonsense on {device}")
