"""The native executor's products and attention against the reference, and that nothing depends on its company."""

from __future__ import annotations

import ctypes
import shutil

import gguf.quants
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from inference_svc.adapters.bank import AdapterBank, LinearDelta
from inference_svc.errors import InvalidRequest
from inference_svc.kernels.choice import choose_kernels
from inference_svc.kernels.native.compiled import CompiledCode
from inference_svc.kernels.native.compiler import NativeUnavailable, load_code
from inference_svc.kernels.native.executor import NativeExecutor
from inference_svc.kernels.reference import ReferenceKernels
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, AttentionSegment, AttentionShape, ForwardBatch
from inference_svc.layers.eager import EagerExecutor
from inference_svc.layers.forward import Forward, Value
from inference_svc.layers.linear import Linear
from inference_svc.weights.quantization import QuantizedTensor
from tests.inference_svc.weights.packed_rows import PACKED_TYPES, rows_of_size

CPU = torch.device("cpu")
FLOATS = ("F32", "F16", "BF16")
MANY_ROWS = [(16, 256, 16), (33, 256, 40), (70, 768, 200)]  # rows, columns, outputs
CODED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


@pytest.fixture(scope="module")
def compiled() -> CompiledCode:
    try:
        return CompiledCode(2, exact=False, batch_invariant=True)
    except NativeUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler is installed")
def test_the_code_compiles_wherever_there_is_a_compiler() -> None:
    load_code()  # all other tests are skipped where it cannot be had, whatever the reason


def matrix(rows: int, columns: int, quantization: str) -> QuantizedTensor:
    """Random numbers of size about 1."""
    kind = GGMLQuantizationType[quantization]
    if kind in PACKED_TYPES:
        data = rows_of_size(kind, rows, columns, 1.0, seed=rows + columns)
    else:
        values = np.random.default_rng(rows + columns).standard_normal((rows, columns), dtype=np.float32)
        data = gguf.quants.quantize(values, kind).view(np.uint8).reshape(rows, -1)
    return QuantizedTensor(torch.from_numpy(data.copy()), kind, (rows, columns))


def weight_block(quantization: str) -> int:
    """Values that have a scale of their own, of which parts take a multiple."""
    return int(GGML_QUANT_SIZES[GGMLQuantizationType[quantization]][0])


def product(compiled: CompiledCode, weight: QuantizedTensor, x: Tensor, kind: str = "rounded") -> Tensor:
    packed = compiled.packed("w", weight)
    assert packed is not None
    y = torch.empty(len(x), weight.shape[0])
    done = compiled.code.lx_product(
        compiled.pointer,
        packed,
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_int64(len(x)),
        ctypes.c_void_p(y.data_ptr()),
        ctypes.c_int32(["rounded", "wide", "int16"].index(kind)),
    )
    if not done:
        pytest.skip("this processor has no matrix tiles of bfloat16")
    return y


def rounded(x: Tensor, bits: int) -> Tensor:
    """Activations as the products see them: whole numbers with a scale for 32 neighbours."""
    groups = x.double().reshape(len(x), -1, 32)
    most = (127 << bits) + (1 << (bits - 1)) - 1
    scale = groups.abs().amax(-1, keepdim=True) / most
    return (torch.round(groups / scale) * scale).nan_to_num().reshape(x.shape)


@pytest.mark.parametrize("quantization", CODED)
@pytest.mark.parametrize(("num_rows", "columns", "out"), [(1, 256, 5), (3, 256, 16), (7, 512, 40), (17, 768, 192)])
def test_a_product_with_rounded_activations_is_that_of_the_unpacked_matrix(
    compiled: CompiledCode, quantization: str, num_rows: int, columns: int, out: int
) -> None:
    weight = matrix(out, columns, quantization)
    x = torch.randn(num_rows, columns, generator=torch.Generator().manual_seed(1))
    x[0, :32] = 0.0
    is_four_bits = quantization in ("Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K")
    dense = weight.dequantize().double()
    expected = rounded(x, 4 if is_four_bits else 8) @ dense.T
    # Scales are kept as halves: of blocks of 256, whose scales are products, they lose up to 2^-11, far less than the
    # rounding of a code. An activation in the middle between two whole numbers may be rounded to either.
    size = x.abs().double() @ dense.abs().T
    assert ((product(compiled, weight, x).double() - expected).abs() / size).max() < (
        6e-4 if weight_block(quantization) == 256 else 2e-4
    )


@pytest.mark.parametrize("quantization", CODED)
@pytest.mark.parametrize(("num_rows", "columns", "out"), MANY_ROWS)
def test_a_product_of_many_rows_is_that_of_the_matrix_in_bfloat16(
    compiled: CompiledCode, quantization: str, num_rows: int, columns: int, out: int
) -> None:
    weight = matrix(out, columns, quantization)
    x = torch.randn(num_rows, columns, generator=torch.Generator().manual_seed(2))
    dense = weight.dequantize()
    expected = x.bfloat16().double() @ dense.bfloat16().double().T
    size = x.abs().double() @ dense.abs().double().T
    # Sums are float32. A weight in the middle between two bfloat16 may go to either; that of a K-quant has a scale that
    # was rounded to a half before, and a minimum that takes most of it away again.
    error = (product(compiled, weight, x, "wide").double() - expected).abs() / size
    assert error.max() < 2e-3
    assert error.mean() < (2e-4 if weight_block(quantization) == 256 else 1e-4)


@pytest.mark.parametrize("quantization", CODED)
@pytest.mark.parametrize(("num_rows", "columns", "out"), MANY_ROWS)
def test_a_product_of_many_rows_in_16_bits_is_that_of_the_matrix(
    compiled: CompiledCode, quantization: str, num_rows: int, columns: int, out: int
) -> None:
    weight = matrix(out, columns, quantization)
    x = torch.randn(num_rows, columns, generator=torch.Generator().manual_seed(2))
    x[1] *= 1e6
    x[2] = 0.0
    x[3, 5] = 30.0 * x[3].abs().max()  # beside which all other numbers have few bits
    expected, lost = int16_product(weight, x)
    assert ((product(compiled, weight, x, "int16").double() - expected).abs() <= lost).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_in_16_bits_that_is_not_finite_gives_nothing_that_looks_like_a_number(
    compiled: CompiledCode, value: float
) -> None:
    weight = matrix(48, 256, "Q4_1")
    x = torch.randn(40, 256, generator=torch.Generator().manual_seed(2))
    whole = product(compiled, weight, x, "int16")
    x[3, 7] = value
    spoilt = product(compiled, weight, x, "int16")
    assert not spoilt[3].isfinite().any()
    assert torch.equal(spoilt[torch.arange(40) != 3], whole[torch.arange(40) != 3])


def test_a_product_in_16_bits_keeps_what_is_small_beside_the_largest_number_of_a_row(compiled: CompiledCode) -> None:
    weight = matrix(64, 768, "Q4_1")
    x = torch.randn(40, 768, generator=torch.Generator().manual_seed(2))
    x[:, 7] = 25.0
    weight_of_largest = weight.dequantize()[:, 7].double()
    expected, _ = int16_product(weight, x)
    error = (product(compiled, weight, x, "int16").double() - expected).square().mean()
    of_the_others = (expected - 25.0 * weight_of_largest).square().mean()
    assert (error / of_the_others).sqrt() < 6e-4  # without the products of low parts it would be four times as much


@pytest.mark.parametrize("quantization", ["Q4_0", "Q4_1", "Q8_0", "Q5_1", "IQ4_NL"])
def test_a_product_in_16_bits_may_end_amid_64_columns(compiled: CompiledCode, quantization: str) -> None:
    weight = matrix(48, 96, quantization)
    x = torch.randn(40, 96, generator=torch.Generator().manual_seed(2))
    expected, lost = int16_product(weight, x)
    assert ((product(compiled, weight, x, "int16").double() - expected).abs() <= lost).all()


def int16_product(weight: QuantizedTensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The exact product, and how far the one in 16 bits may be from it.

    An activation is a whole number of 2^15 of the row's largest, a weight one of 2^14 of what the output's largest code
    adds or its largest minimum, which are at most twice its largest weight and three times in the types that have no
    whole range of codes; scales of blocks of 256 are halves.
    """
    dense, numbers = weight.dequantize().double(), x.double()
    one_x = numbers.abs().amax(1, keepdim=True) / 2**15
    one_w = 3 * dense.abs().amax(1, keepdim=True) / 2**14
    x_size, w_size = numbers.abs().sum(1, keepdim=True), dense.abs().sum(1, keepdim=True)
    scales = 6e-4 if weight_block(str(weight.quantization.name)) == 256 else 1e-6
    lost = 0.5 * one_x @ w_size.T + x_size @ one_w.T + scales * numbers.abs() @ dense.abs().T
    return numbers @ dense.T, lost


@pytest.mark.parametrize("largest", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("quantization", ["Q4_0", "Q4_1", "Q8_0", "Q6_K"])
def test_a_product_of_many_rows_is_as_exact_where_some_outputs_are_a_thousand_times_smaller(
    compiled: CompiledCode, quantization: str, largest: float
) -> None:
    kind = GGMLQuantizationType[quantization]
    values = np.random.default_rng(3).standard_normal((16, 256), dtype=np.float32)

    def rows(size: float) -> NDArray[np.uint8]:
        if kind in PACKED_TYPES:
            return rows_of_size(kind, 16, 256, size, seed=3)
        return np.asarray(gguf.quants.quantize(np.float32(size) * values, kind)).view(np.uint8).reshape(16, -1)

    nothing = rows(1.0) * 0  # scales among the rest
    data = np.concatenate([rows(largest), rows(largest / 1000), nothing])
    weight = QuantizedTensor(torch.from_numpy(data), kind, (48, 256))
    x = torch.randn(40, 256, generator=torch.Generator().manual_seed(2))
    dense = weight.dequantize().double()
    expected = x.bfloat16().double() @ dense.T
    error = (product(compiled, weight, x, "wide").double() - expected).abs()
    # A bfloat16 keeps 8 bits of a weight, whatever its size; what is nothing becomes 2^-27 of the largest at most.
    lost = x.abs().double() @ (2**-8 * dense.abs() + 2**-26 * dense.abs().max()).T
    assert (error <= lost).all()


@pytest.mark.parametrize("quantization", ["Q4_1", "Q4_0", "Q8_0", "Q6_K"])
def test_a_row_of_a_product_is_the_same_to_the_bit_alone_and_in_any_crowd(
    compiled: CompiledCode, quantization: str
) -> None:
    weight = matrix(200, 512, quantization)
    crowd = torch.randn(70, 512)
    together = product(compiled, weight, crowd)
    for row in range(70):
        assert torch.equal(product(compiled, weight, crowd[row : row + 1])[0], together[row])
        assert torch.equal(product(compiled, weight, crowd[row // 2 : row + 1])[-1], together[row])


def test_a_scale_that_no_half_holds_is_multiplied_in_float32(compiled: CompiledCode) -> None:
    weight = matrix(16, 256, "Q4_K")
    weight.data[:, 0:2] = torch.tensor([0xFF, 0x7B], dtype=torch.uint8)  # 65504, and its multiples are more
    assert compiled.packed("too.large", weight) is None
    assert "too.large" in compiled.unpacked


class OneLinear:
    """A model of an embedding and one linear layer."""

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None) -> None:
        self.config = None
        self.table = matrix(32, weight.shape[1], "F32")
        self.linear = Linear("layer", weight, bias)

    def hidden_states(self, run: Forward[Value]) -> Value:
        return run.linear(run.embed(self.table), self.linear)

    def logits(self, run: Forward[Value], hidden: Value) -> Value:
        return run.softcap(run.activate("gelu", run.activate("silu", run.activate("gelu_tanh", hidden))), 3.0)


class OneAttention:
    """A model of an embedding, split in three, and one attention, with norms and partial rotation."""

    def __init__(self, shape: AttentionShape) -> None:
        self.config = None
        self.shape = shape
        q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.sizes = (q, kv, kv)
        self.table = matrix(64, q + 2 * kv, "F32")
        self.weight, self.bias = torch.rand(q) + 0.5, torch.randn(q)
        self.rotation = _Rotation(shape.head_dim // 4)

    def hidden_states(self, run: Forward[Value]) -> Value:
        q, k, v = run.split(run.embed(self.table, 0.5), self.sizes)
        q = run.rotary(q, self.rotation, self.shape.head_dim)  # type: ignore[arg-type]
        k = run.rotary(k, self.rotation, self.shape.head_dim)  # type: ignore[arg-type]
        x = run.attention(q, k, v, 0, self.shape)
        normed = run.layer_norm(x, self.weight, self.bias, 1e-5)
        return run.add(normed, run.gated("silu", run.rms_norm(x, self.weight, 1e-5), x))

    def logits(self, run: Forward[Value], hidden: Value) -> Value:
        return run.layer_norm(hidden, self.weight, None, 1e-5)


class _Rotation:
    def __init__(self, half: int) -> None:
        angles = torch.outer(torch.arange(2048).float(), 1.0 / 100 ** (torch.arange(half) / half))
        self.cosines, self.sines = angles.cos(), angles.sin()

    def at(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.cosines[positions].to(dtype), self.sines[positions].to(dtype)


def executors(model: object, *, exact: bool = True) -> tuple[EagerExecutor, NativeExecutor]:
    """The reference and the native executor of a model, exact and batch-invariant or in the fast mode."""
    try:
        native = NativeExecutor(model, num_threads=2, exact=exact, batch_invariant=exact)  # type: ignore[arg-type]
    except NativeUnavailable as error:
        pytest.skip(str(error))
    return EagerExecutor(model, ReferenceKernels(batch_invariant=False), torch.float32), native  # type: ignore[arg-type]


@pytest.mark.parametrize("quantization", [*FLOATS, *CODED])
@pytest.mark.parametrize("out", [16, 37])
def test_an_exact_product_equals_the_reference_whatever_the_type(quantization: str, out: int) -> None:
    model = OneLinear(matrix(out, 256, quantization), torch.randn(out))
    eager, native = executors(model)
    ids = torch.arange(9)
    batch = ForwardBatch(ids, ids, ids, ())
    cache = KVCache(1, 1, 16, 1, 16, 16, dtype=torch.float32, device=CPU)
    expected = eager.hidden_states(batch, cache)
    # Float32 sums of 256 products in another order.
    torch.testing.assert_close(native.hidden_states(batch, cache), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(native.logits(expected, ()), eager.logits(expected, ()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_rows", [8, 16, 40, 72])
def test_a_scaling_pass_keeps_what_bfloat16_would_lose_however_many_rows_it_has(num_rows: int) -> None:
    model = OneLinear(matrix(64, 256, "Q4_1"), torch.randn(64))
    ids = torch.arange(num_rows) % 32
    cache = KVCache(1, 8, 16, 1, 16, 16, dtype=torch.float16, device=CPU)

    def hidden(*, has_scaling_pass: bool, exact: bool = False) -> Tensor:
        try:
            native = NativeExecutor(model, num_threads=2, exact=exact, batch_invariant=False)  # type: ignore[arg-type]
        except NativeUnavailable as error:
            pytest.skip(str(error))
        return native.hidden_states(ForwardBatch(ids, ids, ids, (), (), has_scaling_pass), cache)

    exact = hidden(has_scaling_pass=True, exact=True)
    error = (hidden(has_scaling_pass=True) - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 5e-4  # bfloat16 loses five times as much


@pytest.mark.parametrize("num_rows", [9, 70, 300])
def test_adapters_that_share_rows_change_them_as_in_the_reference_however_many_there_are(num_rows: int) -> None:
    model = OneLinear(matrix(100, 256, "F32"), torch.randn(100))
    eager, native = executors(model)
    chance = torch.Generator().manual_seed(num_rows)
    ids = torch.randint(0, 32, (num_rows,), generator=chance)

    def bank(digest: str, rank: int, *, has_dora: bool = False) -> AdapterBank:
        a, b = torch.randn(rank, 256, generator=chance) / 16, torch.randn(100, rank, generator=chance)
        factor = torch.rand(100, generator=chance) - 0.5 if has_dora else None
        delta = LinearDelta(a, b, torch.zeros(rank, dtype=torch.int64), factor)
        return AdapterBank(digest, ("a",), {"layer": delta}, {})

    # Threads share rows out: each bank has others, some have all of them, and a row may be in several.
    rows = [torch.arange(num_rows), torch.arange(3, num_rows, 2), torch.arange(num_rows // 3, num_rows - 1)]
    banks = [bank("a", 6), bank("b", 16, has_dora=True), bank("c", 3)]
    weights = [torch.rand(len(of), 1, 1, generator=chance) for of in rows]

    def run(executor: EagerExecutor | NativeExecutor) -> Tensor:
        changes = tuple(
            AdapterRows(executor.prepare(bank), of, weight)
            for bank, of, weight in zip(banks, rows, weights, strict=True)
        )
        cache = KVCache(1, 1, 16, 1, 16, 16, dtype=torch.float32, device=CPU)
        return executor.hidden_states(ForwardBatch(ids, ids, ids, (), changes), cache)

    # Float32 sums of 256 products in another order.
    torch.testing.assert_close(run(native), run(eager), atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("outputs", [96, 100])
@pytest.mark.parametrize("num_rows", [17, 70, 300])
def test_in_passes_of_many_rows_adapters_change_the_rows_they_are_for_and_no_others(
    num_rows: int, outputs: int
) -> None:
    model = OneLinear(matrix(outputs, 256, "Q4_1"), torch.randn(outputs))
    eager, native = executors(model, exact=False)
    chance = torch.Generator().manual_seed(num_rows)
    ids = torch.randint(0, 32, (num_rows,), generator=chance)

    def bank(digest: str, *ranks: int) -> AdapterBank:
        """An adapter of each rank; no rank's A x is much larger than another's, whatever it is counted with."""
        experts = torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks))
        a = torch.randn(len(experts), 256, generator=chance) / 16
        b = torch.randn(outputs, len(experts), generator=chance)
        delta = LinearDelta(a, b, experts)
        return AdapterBank(digest, tuple(map(str, ranks)), {"layer": delta}, {"layer": 1})

    # Half steps of 16 ranks, full and not, of one bank in a step and of two; rows in one bank, in several, in none.
    banks = [bank("a", 6), bank("b", 16, 4, 1), bank("c", 3), bank("d", 40)]
    rows = [torch.arange(2, num_rows), torch.arange(3, num_rows, 2), torch.arange(2, 9), torch.arange(16, num_rows - 1)]
    scalings = [
        torch.randn(len(of), 2, len(bank.experts), generator=chance) for bank, of in zip(banks, rows, strict=True)
    ]
    left_out = next(iter(banks[1].deltas.values()))
    scalings[1][:, :, 1] = 0.0

    def run(executor: EagerExecutor | NativeExecutor, count: int) -> Tensor:
        prepared = [executor.prepare(bank) for bank in banks[:count]]
        changes = tuple(AdapterRows(*each) for each in zip(prepared, rows[:count], scalings[:count], strict=True))
        cache = KVCache(1, 1, 16, 1, 16, 16, dtype=torch.float16, device=CPU)
        return executor.hidden_states(ForwardBatch(ids, ids, ids, (), changes), cache)

    plain, expected = run(native, 0), run(eager, len(banks)) - run(eager, 0)
    changed = run(native, len(banks))
    assert torch.equal(changed[:2], plain[:2])
    # Activations, adapters and what A x gives keep 8 bits each.
    assert (changed - plain - expected).abs().max() < 0.01 * expected.abs().max()
    # What counts nothing is not looked at.
    left_out.a[16:20] = left_out.b[:, 16:20] = float("nan")
    assert (run(native, len(banks)) - changed).abs().max() < 0.01 * expected.abs().max()


def test_adapters_that_have_a_row_each_stay_out_of_the_tiles_of_a_pass_of_many_rows() -> None:
    model = OneLinear(matrix(96, 256, "Q4_1"), torch.randn(96))
    eager, native = executors(model, exact=False)
    chance = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 32, (12,), generator=chance)

    def bank(digest: str, rank: int) -> AdapterBank:
        a, b = torch.randn(rank, 256, generator=chance) / 16, torch.randn(96, rank, generator=chance)
        return AdapterBank(digest, ("a",), {"layer": LinearDelta(a, b, torch.zeros(rank).long())}, {})

    banks = [bank(str(row), 1 + row) for row in range(1, 12)]
    weights = torch.rand(11, 1, 1, 1, generator=chance)

    def run(executor: EagerExecutor | NativeExecutor, count: int) -> Tensor:
        changes = tuple(
            AdapterRows(executor.prepare(bank), torch.tensor([row]), weight)
            for row, (bank, weight) in enumerate(zip(banks[:count], weights, strict=False), start=1)
        )
        cache = KVCache(1, 1, 16, 1, 16, 16, dtype=torch.float16, device=CPU)
        return executor.hidden_states(ForwardBatch(ids, ids, ids, (), changes), cache)

    expected = run(eager, 11) - run(eager, 0)
    change = run(native, 11) - run(native, 0)
    assert torch.equal(change[0], torch.zeros(96))
    # Adapters are halves, of 11 bits, and activations as they are: in tiles both would keep 8 bits.
    assert (change - expected).abs().max() < 5e-4 * expected.abs().max()


def test_adapters_of_few_rows_stay_out_of_the_tiles_that_another_one_is_added_in() -> None:
    model = OneLinear(matrix(100, 256, "Q4_1"), torch.randn(100))
    eager, native = executors(model, exact=False)
    chance = torch.Generator().manual_seed(6)
    counts = [1, 2, 3, 30, 4, 5, 6]  # rows of each adapter
    first = [sum(counts[:index]) for index in range(len(counts) + 1)]
    ids = torch.randint(0, 32, (first[-1] + 1,), generator=chance)

    def bank(rank: int) -> AdapterBank:
        a, b = torch.randn(rank, 256, generator=chance) / 16, torch.randn(100, rank, generator=chance)
        return AdapterBank(str(rank), ("a",), {"layer": LinearDelta(a, b, torch.zeros(rank).long())}, {})

    banks = [bank(rank) for rank in (16, 5, 32, 16, 7, 8, 20)]
    weights = [torch.rand(count, 1, 1, generator=chance) for count in counts]

    def run(executor: EagerExecutor | NativeExecutor, *, changed: bool) -> Tensor:
        changes = tuple(
            AdapterRows(executor.prepare(bank), torch.arange(start, start + len(weight)), weight)
            for bank, start, weight in zip(banks, first[:-1], weights, strict=True)
        )
        cache = KVCache(1, 1, 16, 1, 16, 16, dtype=torch.float16, device=CPU)
        return executor.hidden_states(ForwardBatch(ids, ids, ids, (), changes if changed else ()), cache)

    expected = run(eager, changed=True) - run(eager, changed=False)
    change = run(native, changed=True) - run(native, changed=False)
    lost = (change - expected).abs().amax(1) / expected.abs().max()
    assert torch.equal(change[-1], torch.zeros(100))
    # Halves have 11 bits, and activations all of theirs; in tiles both keep 8.
    assert lost[: first[3]].max() < 5e-4
    assert lost[first[4] :].max() < 5e-4
    assert lost[first[3] : first[4]].max() < 0.01


def test_an_adapter_that_overflows_leaves_nothing_to_those_of_later_passes() -> None:
    model = OneLinear(matrix(64, 256, "Q4_1"), torch.randn(64))
    _, native = executors(model, exact=False)
    ids = torch.arange(20)

    def run(rank: int, size: float, weight: float) -> Tensor:
        delta = LinearDelta(torch.full((rank, 256), size), torch.ones(64, rank), torch.zeros(rank).long())
        bank = AdapterBank(f"{rank} {size}", ("a",), {"layer": delta}, {})
        change = AdapterRows(native.prepare(bank), ids, torch.full((20, 1, 1), weight))
        cache = KVCache(1, 2, 16, 1, 16, 16, dtype=torch.float16, device=CPU)
        return native.hidden_states(ForwardBatch(ids, ids, ids, (), (change,)), cache)

    expected = run(3, 0.01, 1.0)
    assert not run(32, 1e38, 1e9).isfinite().any()
    assert torch.equal(run(3, 0.01, 1.0), expected)


class Gated:
    """A model of an embedding, a gated layer of which both halves are one matrix or two, and a linear layer."""

    def __init__(self, width: int, *, fused: bool) -> None:
        self.config = None
        self.table = matrix(32, 256, "F32")
        sizes = [2 * width] if fused else [width, width]
        self.halves = [
            Linear(f"half.{i}", matrix(size, 256, ("Q4_1", "Q8_0")[i]), torch.randn(size))
            for i, size in enumerate(sizes)
        ]
        self.width = width
        self.down = Linear("down", matrix(256, width, "Q4_K"), None)
        self.after = Linear("after", matrix(48, 256, "Q8_0"), None)

    def hidden_states(self, run: Forward[Value]) -> Value:
        x = run.embed(self.table)
        outputs = [run.linear(x, half) for half in self.halves]
        gate, up = outputs if len(outputs) == 2 else run.split(outputs[0], (self.width, self.width))
        return run.linear(run.linear(run.gated("silu", gate, up), self.down), self.after)

    def logits(self, run: Forward[Value], hidden: Value) -> Value:
        return run.activate("silu", hidden)


@pytest.mark.parametrize("adapted", ["half.0", "down", "after"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("num_rows", [17, 40, 300])
def test_a_gated_layer_of_many_rows_is_the_same_to_the_bit_activated_at_once_and_beside_adapters(
    num_rows: int, fused: bool, adapted: str
) -> None:
    model = Gated(768, fused=fused)
    ids = torch.randint(0, 32, (num_rows,))
    eager, native = executors(model, exact=False)
    cache = KVCache(1, 1, 16, 1, 16, 16, dtype=torch.float16, device=CPU)
    shape = {linear.path: linear.weight.shape for linear in (*model.halves, model.down, model.after)}[adapted]

    def run(executor: EagerExecutor | NativeExecutor, weight: float | None) -> Tensor:
        adapters: tuple[AdapterRows, ...] = ()
        if weight is not None:
            chance = torch.Generator().manual_seed(1)
            a = torch.randn(4, shape[1], generator=chance) / 16
            b = torch.randn(shape[0], 4, generator=chance) * weight
            bank = AdapterBank("a", ("a",), {adapted: LinearDelta(a, b, torch.zeros(4).long())}, {})
            adapters = (AdapterRows(executor.prepare(bank), torch.arange(num_rows), torch.ones(num_rows, 1, 1)),)
        return executor.hidden_states(ForwardBatch(ids, ids, ids, (), adapters), cache)

    at_once = run(native, None)
    assert torch.equal(run(native, 0.0), at_once)
    # Weights, activations and what lies between them each keep 8 bits.
    for weight in (None, 1.0):
        expected = run(eager, weight)
        assert (run(native, weight) - expected).abs().max() < 0.01 * expected.abs().max()


SHAPES = [
    AttentionShape(9, 3, 64, 0.125),
    AttentionShape(4, 4, 32, 0.2, window=70),
    AttentionShape(8, 1, 16, 0.3, softcap=5.0),
    AttentionShape(40, 2, 48, 0.1, window=300, softcap=20.0),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_and_norms_equal_the_reference_however_a_sequence_is_cut(shape: AttentionShape) -> None:
    model = OneAttention(shape)
    eager, native = executors(model)
    length = 600  # three chunks of the native attention
    ids = torch.randint(0, 64, (length,), generator=torch.Generator().manual_seed(3))
    blocks = torch.randperm(40, generator=torch.Generator().manual_seed(4))
    slots = blocks[torch.arange(length) // 16] * 16 + torch.arange(length) % 16

    def cache() -> KVCache:
        width = shape.num_heads * shape.head_dim
        return KVCache(1, 40, 16, shape.num_kv_heads, shape.head_dim, width, dtype=torch.float32, device=CPU)

    def run(executor: EagerExecutor | NativeExecutor, cuts: list[int]) -> Tensor:
        own, parts = cache(), []
        for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
            segment = AttentionSegment(0, stop - start, start, blocks)
            batch = ForwardBatch(ids[start:stop], torch.arange(start, stop), slots[start:stop], (segment,))
            parts.append(executor.hidden_states(batch, own))
        return torch.cat(parts)

    whole = run(native, [])
    torch.testing.assert_close(whole, run(eager, []), atol=1e-4, rtol=1e-4)
    # However the sequence is cut: the same bits.
    for cuts in ([1, 17, 255, 256, 257], list(range(7, 600, 97)), [599]):
        assert torch.equal(run(native, cuts), whole)


class BareAttention(OneAttention):
    """The attention alone."""

    def hidden_states(self, run: Forward[Value]) -> Value:
        q, k, v = run.split(run.embed(self.table, 0.5), self.sizes)
        return run.attention(q, k, v, 0, self.shape)


@pytest.mark.parametrize(
    "shape",
    # The last has scores so large that keys of 8 bits would show.
    [
        *SHAPES,
        AttentionShape(12, 2, 128, 0.09, window=200),
        AttentionShape(6, 2, 96, 0.1),
        AttentionShape(9, 3, 64, 4.0),
    ],
    ids=str,
)
def test_attention_of_many_rows_is_that_of_the_reference_in_bfloat16(shape: AttentionShape) -> None:
    model = BareAttention(shape)
    eager, native = executors(model, exact=False)
    length = 600
    ids = torch.randint(0, 64, (length,), generator=torch.Generator().manual_seed(5))
    blocks = torch.randperm(40, generator=torch.Generator().manual_seed(6))
    slots = blocks[torch.arange(length) // 16] * 16 + torch.arange(length) % 16
    width = shape.num_heads * shape.head_dim

    def run(executor: EagerExecutor | NativeExecutor) -> Tensor:
        kind = executor.cache_dtype
        own, parts = KVCache(1, 40, 16, shape.num_kv_heads, shape.head_dim, width, dtype=kind, device=CPU), []
        if executor is native:
            for keys_or_values in own.storage:
                keys_or_values.fill_(float("nan"))  # what nobody has written must not matter
        for start, stop in ((0, 41), (41, 300), (300, length)):
            segment = AttentionSegment(0, stop - start, start, blocks)
            batch = ForwardBatch(ids[start:stop], torch.arange(start, stop), slots[start:stop], (segment,))
            parts.append(executor.hidden_states(batch, own))
        return torch.cat(parts)

    # Weights of positions and values keep 8 bits, keys and values in the cache 11: at most 2^-8 of the largest value,
    # and as much again for what a rounded key does to a score.
    largest = 0.5 * float(model.table.dequantize().abs().max())
    assert (run(native) - run(eager)).abs().max() < largest * 2**-7


@pytest.mark.parametrize("shape", [*SHAPES, AttentionShape(8, 8, 80, 0.1), AttentionShape(32, 4, 64, 0.1)], ids=str)
def test_sequences_of_few_and_of_many_rows_attend_to_what_is_theirs_in_one_pass(shape: AttentionShape) -> None:
    model = BareAttention(shape)
    eager, native = executors(model, exact=False)
    # Positions that are known, and rows: at the end of a block, of a chunk, at the beginning of a text, and beyond.
    sequences = [(200, 1), (15, 2), (255, 3), (256, 4), (0, 40), (530, 5), (0, 1), (300, 6), (250, 90), (33, 7)]
    chance = torch.Generator().manual_seed(7)
    own_blocks, used = [], 0
    for known, count in sequences:
        own_blocks.append(torch.arange(used, used := used + (known + count + 15) // 16))
    order = torch.randperm(used, generator=chance)
    width = shape.num_heads * shape.head_dim

    def run(executor: EagerExecutor | NativeExecutor) -> Tensor:
        cache = KVCache(1, used, 16, shape.num_kv_heads, shape.head_dim, width, dtype=executor.cache_dtype, device=CPU)
        if executor is native:
            for keys_or_values in cache.storage:
                keys_or_values.fill_(float("nan"))  # what nobody has written must not matter

        def step(spans: list[tuple[int, int]]) -> Tensor:
            segments, ids, positions, slots, rows = [], [], [], [], 0
            for number, (start, count) in enumerate(spans):
                if not count:
                    continue
                blocks, at = order[own_blocks[number]], torch.arange(start, start + count)
                segments.append(AttentionSegment(rows, count, start, blocks))
                ids.append((at * 7 + number) % 64)
                positions.append(at)
                slots.append(blocks[at // 16] * 16 + at % 16)
                rows += count
            batch = ForwardBatch(torch.cat(ids), torch.cat(positions), torch.cat(slots), tuple(segments))
            return executor.hidden_states(batch, cache)

        step([(0, known) for known, _ in sequences])
        return step(sequences)

    # As above; few rows attend in float32, so that the cache's halves alone are lost.
    largest = 0.5 * float(model.table.dequantize().abs().max())
    error = (run(native) - run(eager)).abs().amax(1)
    assert error.max() < largest * 2**-7
    assert error[:3].max() < largest * 2**-9


def test_without_a_compiler_the_reference_runs_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    choice = choose_kernels("auto", CPU, batch_invariant=True)
    assert choice.name == "reference"
    assert "no C++ compiler" in choice.notice
    with pytest.raises(InvalidRequest, match=r"no C\+\+ compiler"):
        choose_kernels("native", CPU, batch_invariant=True)


def test_a_model_that_the_library_cannot_run_is_run_by_the_reference(compiled: CompiledCode) -> None:
    model = OneAttention(AttentionShape(2, 2, 8, 0.3))
    executor, notice = choose_kernels("auto", CPU, batch_invariant=True).executor(model)  # type: ignore[arg-type]
    assert executor.name == "reference"
    assert "head dimension 8" in notice
    with pytest.raises(InvalidRequest, match="head dimension 8"):
        choose_kernels("native", CPU, batch_invariant=True).executor(model)  # type: ignore[arg-type]
