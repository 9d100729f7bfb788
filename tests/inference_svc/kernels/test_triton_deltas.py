"""What adapters add, by Triton, against the reference's loop over banks in float64."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inference_svc.adapters.bank import AdapterBank, LinearDelta
from inference_svc.kernels.reference import ReferenceKernels
from inference_svc.layers.batch import AdapterRows
from tests.inference_svc.kernels.triton_device import DEVICE, ROUNDING

pytest.importorskip("triton")

from inference_svc.kernels.triton.delta_table import DeltaTables, Room
from inference_svc.kernels.triton.kernels import TritonKernels
from inference_svc.kernels.triton.weights import PackedWeights

LAYER = "model.layers.0.mlp.up_proj"
REFERENCE = ReferenceKernels(batch_invariant=False)


@dataclass(frozen=True, slots=True)
class Adapter:
    """Ranks of the experts of a bank, the rows it changes, and for how many layers it has scalings of its own."""

    ranks: tuple[int, ...]
    rows: tuple[int, ...]
    layers: int = 1
    is_dora: bool = False


def triton_kernels() -> TritonKernels:
    return TritonKernels(PackedWeights(torch.float32), batch_invariant=True)


def applied(
    adapters: list[Adapter], inputs: int, outputs: int, dtype: torch.dtype, chance: torch.Generator
) -> tuple[AdapterRows, ...]:
    made = []
    for number, adapter in enumerate(adapters):
        experts = torch.arange(len(adapter.ranks)).repeat_interleave(torch.tensor(adapter.ranks))
        a = (torch.randn(len(experts), inputs, generator=chance) / inputs**0.5).to(DEVICE, dtype)
        b = torch.randn(outputs, len(experts), generator=chance).to(DEVICE, dtype)
        factor = torch.randn(outputs, generator=chance).to(DEVICE) if adapter.is_dora else None
        delta = LinearDelta(a, b, experts.to(DEVICE), factor)
        bank = AdapterBank(str(number), tuple(map(str, adapter.ranks)), {LAYER: delta}, {LAYER: adapter.layers - 1})
        scalings = torch.randn(len(adapter.rows), adapter.layers, len(adapter.ranks), generator=chance)
        made.append(AdapterRows(bank, torch.tensor(adapter.rows, device=DEVICE), scalings.to(DEVICE, dtype)))
    return tuple(made)


def exactly(item: AdapterRows) -> AdapterRows:
    delta = item.bank.deltas[LAYER]
    factor = None if delta.base_factor is None else delta.base_factor.double()
    wide = LinearDelta(delta.a.double(), delta.b.double(), delta.expert_of_rank, factor)
    bank = AdapterBank(item.bank.digest, item.bank.experts, {LAYER: wide}, item.bank.scaling_rows)
    return AdapterRows(bank, item.rows, item.scalings.double())


def without_signs(item: AdapterRows) -> AdapterRows:
    delta = item.bank.deltas[LAYER]
    factor = None if delta.base_factor is None else delta.base_factor.abs()
    bank = AdapterBank(
        item.bank.digest,
        item.bank.experts,
        {LAYER: LinearDelta(delta.a.abs(), delta.b.abs(), delta.expert_of_rank, factor)},
        item.bank.scaling_rows,
    )
    return AdapterRows(bank, item.rows, item.scalings.abs())


def check(y: Tensor, x: Tensor, adapters: tuple[AdapterRows, ...], changed: Tensor) -> None:
    """Within what rounding A x, a delta and the sum may move them by."""
    exact = tuple(map(exactly, adapters))
    before = y.double()
    expected = REFERENCE.add_deltas(before.clone(), before, x.double(), LAYER, exact)
    sizes = before.abs()
    size = REFERENCE.add_deltas(sizes.clone(), sizes, x.double().abs(), LAYER, tuple(map(without_signs, exact)))
    assert changed.dtype is y.dtype
    assert ((changed.double() - expected).abs() <= 3 * ROUNDING[y.dtype] * size).all()
    untouched = torch.ones(len(y), dtype=torch.bool, device=DEVICE)
    for item in adapters:
        untouched[item.rows] = False
    assert torch.equal(changed[untouched], y[untouched])


def run(adapters: list[Adapter], num_rows: int, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> None:
    chance = torch.Generator().manual_seed(num_rows)
    changes = applied(adapters, inputs, outputs, dtype, chance)
    x = torch.randn(num_rows, inputs, generator=chance).to(DEVICE, dtype)
    y = torch.randn(num_rows, outputs, generator=chance).to(DEVICE, dtype)
    check(y, x, changes, triton_kernels().add_deltas(y.clone(), y, x, LAYER, changes))


# Rows of one LoRA, of several (weighted), of X-LoRAs of mixed ranks with scalings for each layer, and of none.
MIXED = [
    Adapter((6,), tuple(range(2, 22))),
    Adapter((16, 4, 1), tuple(range(3, 22, 2)), layers=3),
    Adapter((3,), (2, 5, 8)),
    Adapter((40,), (21, 24)),
    Adapter((8, 8), (23,), layers=2),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_many_adapters_get_what_the_loop_over_banks_gives_them(dtype: torch.dtype) -> None:
    run(MIXED, 26, 72, 70, dtype)


def test_long_rows_are_added_up_from_their_pieces() -> None:
    run([Adapter((5,), (0, 1)), Adapter((17,), (1,))], 3, 2100, 20)


def test_a_dora_goes_beside_other_adapters() -> None:
    run([Adapter((4,), (0, 2, 3), is_dora=True), Adapter((2,), (2, 4))], 5, 40, 30)


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, list[Adapter]]:
    num_rows = draw(st.integers(1, 40))
    adapters = [
        Adapter(
            tuple(draw(st.lists(st.integers(1, 20), min_size=1, max_size=3))),
            tuple(sorted(draw(st.sets(st.integers(0, num_rows - 1), min_size=1)))),
            draw(st.integers(1, 2)),
        )
        for _ in range(draw(st.integers(1, 4)))
    ]
    return num_rows, adapters


@settings(max_examples=8)
@given(batch=batches(), inputs=st.integers(1, 150), outputs=st.integers(1, 70))
def test_any_rows_of_any_adapters_get_what_the_loop_over_banks_gives_them(
    batch: tuple[int, list[Adapter]], inputs: int, outputs: int
) -> None:
    run(batch[1], batch[0], inputs, outputs)


def test_what_is_added_to_a_row_is_the_same_to_the_bit_alone_and_in_any_crowd() -> None:
    chance = torch.Generator().manual_seed(1)
    changes = applied(MIXED, 72, 70, torch.float32, chance)
    x, y = torch.randn(26, 72, generator=chance).to(DEVICE), torch.randn(26, 70, generator=chance).to(DEVICE)
    kernels = triton_kernels()
    together = kernels.add_deltas(y.clone(), y, x, LAYER, changes)
    for row in (2, 5, 21, 24):
        own = tuple(
            AdapterRows(item.bank, torch.zeros(1, dtype=torch.int64, device=DEVICE), item.scalings[item.rows == row])
            for item in changes
            if row in item.rows
        )
        alone = kernels.add_deltas(y[row : row + 1].clone(), y[row : row + 1], x[row : row + 1], LAYER, own)
        assert torch.equal(alone[0], together[row])


def test_layers_that_no_adapter_changes_are_left_alone() -> None:
    changes = applied([Adapter((4,), (0,))], 8, 8, torch.float32, torch.Generator().manual_seed(1))
    y = torch.ones(2, 8, device=DEVICE)
    kernels = triton_kernels()
    kernels.add_deltas(y.clone(), y, y, LAYER, changes)
    assert torch.equal(kernels.add_deltas(y.clone(), y, y, "model.layers.1.mlp.up_proj", changes), y)


def test_a_table_is_made_once_for_the_same_adapters_and_keeps_none_of_them_alive() -> None:
    chance = torch.Generator().manual_seed(1)
    tables = DeltaTables()
    changes = applied([Adapter((4,), (0,)), Adapter((4,), (1,))], 8, 8, torch.float32, chance)
    table = tables.of(changes)
    assert tables.of(changes) is table
    assert tables.of(changes[:1]) is not table
    banks = [weakref.ref(item.bank) for item in changes]
    del changes, table
    gc.collect()
    assert [bank() for bank in banks] == [None, None]


def test_a_table_in_a_wider_room_says_the_same() -> None:
    chance = torch.Generator().manual_seed(1)
    changes = applied(MIXED, 72, 70, torch.float32, chance)
    x, y = torch.randn(26, 72, generator=chance).to(DEVICE), torch.randn(26, 70, generator=chance).to(DEVICE)
    kernels = triton_kernels()
    own = kernels.delta_table(changes)
    room = Room(own.room.tiles + 3, own.room.pairs + 5, own.room.banks + 2, own.room.layers + 1, own.room.ranks + 16)
    assert room.holds(own.room)
    assert not own.room.holds(room)
    wide = kernels.deltas.in_room(changes, room)
    wide.copy_(kernels.deltas.in_room(changes, room))

    from inference_svc.kernels.triton.deltas import add_deltas

    expected, found = y.clone(), y.clone()
    add_deltas(expected, x, own, 0)
    add_deltas(found, x, wide, 0)
    assert torch.equal(found, expected)
