"""Norm, rotation, gated activation and writing to the cache, by Triton, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inference_svc.kernels.reference import ReferenceKernels
from inference_svc.kv_cache.cache import KVCache
from tests.inference_svc.kernels.triton_device import DEVICE, ROUNDING

pytest.importorskip("triton")

from inference_svc.kernels.triton.kernels import TritonKernels
from inference_svc.kernels.triton.weights import PackedWeights

REFERENCE = ReferenceKernels(batch_invariant=False)
KERNELS = TritonKernels(PackedWeights(torch.float32), batch_invariant=False)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def check(found: Tensor, expected: Tensor, size: Tensor, absolute: Tensor | float = 0.0) -> None:
    """Computed in float32, where it may be off by `absolute`, and rounded once."""
    smallest = float(torch.finfo(found.dtype).smallest_normal) * ROUNDING[found.dtype]
    assert ((found.double() - expected).abs() <= ROUNDING[found.dtype] * size + smallest + absolute).all()


@DTYPES
@pytest.mark.parametrize("width", [16, 100, 576])
def test_the_norm_is_that_of_the_reference(width: int, dtype: torch.dtype) -> None:
    wide, weight = (5 * random(3, 2 * width)).to(dtype), random(width, seed=1)
    for x in (wide[:, :width], wide[:, width:].contiguous()):
        exact = x.double()
        expected = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-5) * weight.double()
        check(KERNELS.rms_norm(x, weight, 1e-5), expected, expected.abs())


@DTYPES
@pytest.mark.parametrize(("head_dim", "half"), [(16, 8), (20, 10), (32, 4)])
def test_the_rotation_is_that_of_the_reference_and_leaves_what_follows(
    head_dim: int, half: int, dtype: torch.dtype
) -> None:
    wide, angles = random(5, 2 * 3 * head_dim).to(dtype), random(5, half, seed=1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    for part in (wide[:, : 3 * head_dim], wide[:, 3 * head_dim :].contiguous()):
        x = part.reshape(5, 3, head_dim)
        found = KERNELS.rotary(x, cos, sin)
        check(found, REFERENCE.rotary(x.double(), cos.double(), sin.double()), 2 * x.double().abs().amax())
        assert torch.equal(found[:, :, 2 * half :], x[:, :, 2 * half :])


@DTYPES
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
def test_the_gated_activation_is_that_of_the_reference(kind: str, dtype: torch.dtype) -> None:
    fused = (4 * random(3, 2 * 1100)).to(dtype)
    gate, up = fused[:, :1100], fused[:, 1100:]
    expected = REFERENCE.gated(kind, gate.double(), up.double())
    # Where an activation is next to nothing it is what 1 - 1 leaves: a few roundings of 1, times the gate.
    few = 2.0**-22 * (gate.double() * up.double()).abs()
    check(KERNELS.gated(kind, gate, up), expected, expected.abs(), few)


def test_keys_and_values_are_written_to_their_slots_and_those_of_nobody_nowhere() -> None:
    cache = KVCache(2, 3, 16, 2, 20, 1, dtype=torch.float32, device=DEVICE)
    wide = random(4, 3 * 40)
    keys, values = (wide[:, first : first + 40].reshape(4, 2, 20) for first in (0, 80))
    KERNELS.write(cache, 1, torch.tensor([3, -1, 40, 17], device=DEVICE), keys, values)
    expected = KVCache(2, 3, 16, 2, 20, 1, dtype=torch.float32, device=DEVICE)
    kept = torch.tensor([0, 2, 3], device=DEVICE)
    expected.write(1, torch.tensor([3, 40, 17], device=DEVICE), keys[kept], values[kept])
    for own, its in zip(cache.storage, expected.storage, strict=True):
        assert torch.equal(own, its)
