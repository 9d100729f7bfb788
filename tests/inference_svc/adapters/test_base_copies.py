"""Copies of base weights against packed ones: what packing changes is accepted, in every type, and little more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gguf.quants
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from inference_svc.adapters.base_copies import bar_of, copy_problem
from inference_svc.adapters.base_model import BaseModelShape
from inference_svc.weights.k_quantizers import K_QUANTIZERS
from inference_svc.weights.quantization import QuantizedTensor
from tests.inference_svc.adapters.original_rows import original_rows
from tests.inference_svc.adapters.record_llamacpp_rows import RECORDED
from tests.inference_svc.adapters.record_llamacpp_rows import TYPES as RECORDED_TYPES

TYPES = [
    GGMLQuantizationType[name]
    for name in ["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0"]
]


def packed(dense: Tensor, kind: GGMLQuantizationType) -> QuantizedTensor:
    rows, columns = dense.shape
    if kind in K_QUANTIZERS:
        data = K_QUANTIZERS[kind](dense.reshape(-1, 256).contiguous()).reshape(rows, -1)
    else:
        data = torch.from_numpy(gguf.quants.quantize(dense.numpy().astype(np.float32), kind).view(np.uint8))
    return QuantizedTensor(data.contiguous(), kind, (rows, columns))


def problem(copy: Tensor, weight: QuantizedTensor, base: BaseModelShape) -> str | None:
    return copy_problem("lm_head", copy, replace(base, weights={"lm_head": weight}))


@pytest.fixture(scope="module")
def real(smollm2_gguf: Path) -> dict[str, Tensor]:
    return original_rows(smollm2_gguf, 2048)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_what_packing_makes_of_the_real_model_is_accepted(
    real: dict[str, Tensor], base: BaseModelShape, kind: GGMLQuantizationType
) -> None:
    errors = []
    for dense in real.values():
        if kind in K_QUANTIZERS and dense.shape[1] % 256:
            continue
        weight = packed(dense, kind)
        own = weight.dequantize()
        for copy in (dense, dense.bfloat16()):
            assert problem(copy, weight, base) is None
            errors.append(float(((copy.float() - own).norm(dim=1) / own.norm(dim=1)).max()))
    assert max(errors) > bar_of(kind) / 8  # a bar that is far from what happens would hide what it is there to find


@pytest.fixture(scope="module")
def recorded() -> Mapping[str, NDArray[np.uint8]]:
    """Rows in bfloat16, and as llama.cpp packs them: for each type those that it leaves furthest off."""
    with np.load(RECORDED, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("kind", RECORDED_TYPES, ids=lambda kind: kind.name)
def test_what_llama_cpp_makes_of_a_row_is_accepted_in_every_type_and_a_row_made_anew_is_not(
    recorded: Mapping[str, NDArray[np.uint8]], base: BaseModelShape, kind: GGMLQuantizationType
) -> None:
    copies = torch.from_numpy(recorded[f"{kind.name} copies"]).view(torch.bfloat16)
    own = gguf.quants.dequantize(recorded[f"{kind.name} packed"], kind).reshape(copies.shape).astype(np.float32)
    weight = QuantizedTensor(
        torch.from_numpy(own).view(torch.uint8),
        GGMLQuantizationType.F32,
        (copies.shape[0], copies.shape[1]),
        precision=kind,
    )
    assert problem(copies, weight, base) is None
    errors = np.linalg.norm(copies.float().numpy() - own, axis=1) / np.linalg.norm(own, axis=1)
    assert bar_of(kind) / 5 <= errors.max() <= bar_of(kind) / 1.25
    noise = torch.randn(copies.shape[1], generator=torch.Generator().manual_seed(3))
    for row in range(len(copies)):
        changed = copies.clone()
        changed[row] = noise * (copies[row].norm() / noise.norm())
        said = problem(changed, weight, base)
        assert said is not None
        assert f"at row {row}" in said


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_a_row_that_is_further_off_than_packing_takes_it_is_found(
    base: BaseModelShape, kind: GGMLQuantizationType
) -> None:
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(40, 512, generator=generator)
    weight = packed(dense, kind)
    noise = torch.randn(512, generator=generator)
    for row, changed in (
        (7, dense[7] + noise * 1.5 * bar_of(kind)),
        (39, noise),
        (0, torch.full((512,), float("nan"))),
    ):
        copy = dense.clone()
        copy[row] = changed
        said = problem(copy, weight, base)
        assert said is not None
        assert f"at row {row}" in said


def test_the_head_is_held_to_the_bar_of_its_own_type_not_of_most_weights() -> None:
    bars = [
        bar_of(GGMLQuantizationType[name])
        for name in ["F16", "Q8_0", "Q6_K", "Q5_1", "Q4_1", "Q3_K", "Q2_K", "IQ2_XXS", "IQ1_S"]
    ]
    assert bars == sorted(bars)
    assert bars[0] <= 0.01
    assert max(bars) < 1  # zeros are off by 1
    assert bar_of(GGMLQuantizationType.Q5_0) == bar_of(GGMLQuantizationType.Q5_1)
    assert bar_of(GGMLQuantizationType.Q4_0) == bar_of(GGMLQuantizationType.Q4_1) == bar_of(GGMLQuantizationType.Q4_K)


def test_weights_that_were_unpacked_are_held_to_the_bar_of_their_packing(base: BaseModelShape) -> None:
    dense = torch.randn(40, 512, generator=torch.Generator().manual_seed(2))
    kind = GGMLQuantizationType.TQ2_0
    values = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(dense.numpy(), kind), kind))
    values = dense + 0.3 * (values - dense)  # as far off as a type of two bits is
    floats = values.contiguous().view(torch.uint8)
    unpacked = QuantizedTensor(floats, GGMLQuantizationType.F32, (40, 512), precision=kind)
    assert problem(dense, unpacked, base) is None
    assert problem(dense, QuantizedTensor(floats, GGMLQuantizationType.F32, (40, 512)), base) is not None
