"""In batch-invariant mode prompts are computed in bfloat16, however few rows they have, and nothing else is.

No row depends on what runs beside it: texts run alone, and in crowds that are cut at random.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from inference_svc.adapters.bank import AdapterBank, LinearDelta
from inference_svc.kernels.native.compiler import NativeUnavailable
from inference_svc.kernels.native.executor import NativeExecutor
from inference_svc.kernels.reference import ReferenceKernels
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, AttentionShape, ForwardBatch
from inference_svc.layers.eager import EagerExecutor
from tests.inference_svc.kernels.native_crowd import INNER, SHAPES, WIDTH, Crowd, Text, TwoLayers, bank_of
from tests.inference_svc.kernels.test_native import OneLinear, matrix

LENGTHS = (7, 300, 40, 21, 33, 12, 18, 26, 16, 9, 5, 1)


def executor(model: TwoLayers | OneLinear, *, exact: bool = False, batch_invariant: bool = True) -> NativeExecutor:
    try:
        return NativeExecutor(model, num_threads=2, exact=exact, batch_invariant=batch_invariant)  # type: ignore[arg-type]
    except NativeUnavailable as error:
        pytest.skip(str(error))


def two_layers(shape: AttentionShape) -> TwoLayers:
    kv = shape.num_kv_heads * shape.head_dim
    shapes = {(WIDTH, WIDTH), (kv, WIDTH), (INNER, WIDTH), (WIDTH, INNER)}
    matrices = {of: matrix(*of, ("Q4_1", "Q8_0")[i % 2]) for i, of in enumerate(sorted(shapes))}
    return TwoLayers(shape, matrices, matrix(64, WIDTH, "F32"), matrix(48, WIDTH, "Q8_0"))


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def model(request: pytest.FixtureRequest) -> TwoLayers:
    return two_layers(request.param)


@pytest.fixture(scope="module")
def native(model: TwoLayers) -> NativeExecutor:
    subject = executor(model)
    if not subject.separates_prompts:
        pytest.skip("this processor has no matrix tiles of bfloat16")
    return subject


@pytest.fixture(scope="module")
def texts(model: TwoLayers) -> list[Text]:
    """Of every kind: ranks that fill steps of 32 or do not, a bank or several, DoRA, a mixture, one that overflows."""
    chance = torch.Generator().manual_seed(7)
    banks = {
        "a": bank_of(model, "a", [16], "q down"),
        "b": bank_of(model, "b", [4], "q v gate up down"),
        "c": bank_of(model, "c", [32], "q k down"),
        "d": bank_of(model, "d", [64], "v o gate"),
        "e": bank_of(model, "e", [24], "q up down"),
        "f": bank_of(model, "f", [8], "q up down", dora=True),
        "g": bank_of(model, "g", [20, 4, 16], "q v down"),
        "h": bank_of(model, "h", [6], "k o"),
    }
    next(iter(banks["h"].deltas.values())).b[3, 2] = float("inf")
    texts = []
    for length, names in zip(LENGTHS, ("", "c", "a", "ab", "bce", "f", "cf", "g", "d", "h", "e", "c"), strict=True):
        changes = [
            (banks[name], torch.rand(length, 6 if name == "g" else 1, len(banks[name].experts), generator=chance))
            for name in names
        ]
        texts.append(Text(torch.randint(0, 64, (length,), generator=chance), changes))
    return texts


def alone(native: NativeExecutor, model: TwoLayers, text: Text, *, is_of_prompts: bool, cut: int = 10**6) -> Tensor:
    crowd = Crowd(native, model.shape, [text])
    while crowd.pending:
        crowd.run([(0, min(cut, crowd.pending[0][1]))], is_of_prompts=is_of_prompts)
    return crowd.hidden(0)


def same(one: Tensor, other: Tensor) -> bool:
    """To the bit; what overflows overflows in both."""
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize("is_of_prompts", [True, False])
def test_a_text_alone_and_cut_at_random_in_any_crowd_is_the_same_to_the_bit(
    model: TwoLayers, native: NativeExecutor, texts: list[Text], is_of_prompts: bool
) -> None:
    expected = [alone(native, model, text, is_of_prompts=is_of_prompts) for text in texts]
    shuffle = random.Random(5)
    for _ in range(8):
        crowd = Crowd(native, model.shape, texts)
        while open_ones := crowd.pending:
            chosen = shuffle.sample(open_ones, shuffle.randint(1, len(open_ones)))
            most = shuffle.choice((1, 3, 20, 200))
            crowd.run([(i, shuffle.randint(1, min(most, left))) for i, left in chosen], is_of_prompts=is_of_prompts)
        for index, hidden in enumerate(expected):
            assert same(crowd.hidden(index), hidden), index


def test_a_prompt_is_the_same_to_the_bit_row_by_row(
    model: TwoLayers, native: NativeExecutor, texts: list[Text]
) -> None:
    for text in texts:
        if len(text.token_ids) < 100:
            whole = alone(native, model, text, is_of_prompts=True)
            assert same(alone(native, model, text, is_of_prompts=True, cut=1), whole)


def test_each_pair_of_texts_side_by_side_is_the_same_as_each_alone(
    model: TwoLayers, native: NativeExecutor, texts: list[Text]
) -> None:
    expected = [alone(native, model, text, is_of_prompts=True) for text in texts]
    for one in range(len(texts)):
        for other in range(one):
            crowd = Crowd(native, model.shape, [texts[one], texts[other]])
            crowd.run(crowd.pending, is_of_prompts=True)
            assert same(crowd.hidden(0), expected[one]), (one, other)
            assert same(crowd.hidden(1), expected[other]), (one, other)


def test_rows_of_a_prompt_are_computed_in_bfloat16_however_few_and_others_in_whole_numbers_however_many(
    model: TwoLayers, native: NativeExecutor, texts: list[Text]
) -> None:
    fast = executor(model, batch_invariant=False)  # nine rows and more in bfloat16, fewer in whole numbers
    plain = Text(texts[2].token_ids)
    in_bfloat16, in_whole_numbers = (alone(fast, model, plain, is_of_prompts=False, cut=cut) for cut in (40, 8))
    assert not torch.equal(in_bfloat16, in_whole_numbers)
    assert torch.equal(alone(native, model, plain, is_of_prompts=True, cut=3)[:9], in_bfloat16[:9])
    for cut in (1, 40):
        assert torch.equal(alone(native, model, plain, is_of_prompts=False, cut=cut), in_whole_numbers)


@pytest.mark.parametrize("outputs", [96, 100])
@pytest.mark.parametrize("batch_invariant", [True, False])
def test_dora_changes_what_the_base_says_also_where_other_adapters_are_added_in_tiles(
    batch_invariant: bool, outputs: int
) -> None:
    model = OneLinear(matrix(outputs, 256, "Q4_1"), torch.randn(outputs))
    eager = EagerExecutor(model, ReferenceKernels(batch_invariant=False), torch.float32)  # type: ignore[arg-type]
    native = executor(model, batch_invariant=batch_invariant)
    chance = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 32, (70,), generator=chance)

    def bank(digest: str, rank: int, *, has_dora: bool = False) -> AdapterBank:
        a, b = torch.randn(rank, 256, generator=chance) / 16, torch.randn(outputs, rank, generator=chance)
        factor = torch.rand(outputs, generator=chance) - 0.5 if has_dora else None
        return AdapterBank(digest, ("a",), {"layer": LinearDelta(a, b, torch.zeros(rank).long(), factor)}, {})

    # Rows with nothing, with one of them, with several; the second is added after the others.
    banks = [bank("a", 6), bank("b", 8, has_dora=True), bank("c", 40)]
    rows = [torch.arange(2, 50), torch.arange(3, 70, 2), torch.arange(16, 65)]
    weights = [torch.rand(len(of), 1, 1, generator=chance) for of in rows]

    def run(runs: EagerExecutor | NativeExecutor, count: int) -> Tensor:
        changes = tuple(AdapterRows(*each) for each in zip(banks[:count], rows[:count], weights[:count], strict=True))
        cache = KVCache(1, 1, 16, 1, 16, 16, dtype=torch.float16, device=torch.device("cpu"))
        return runs.hidden_states(ForwardBatch(ids, ids, ids, (), changes, is_of_prompts=batch_invariant), cache)

    expected = run(eager, len(banks)) - run(eager, 0)
    # Activations, adapters and what A x gives keep 8 bits each.
    assert (run(native, len(banks)) - run(native, 0) - expected).abs().max() < 0.01 * expected.abs().max()


def test_only_where_rows_must_not_choose_the_arithmetic_prompts_are_separated(model: TwoLayers) -> None:
    invariant = executor(model)
    assert invariant.separates_prompts == invariant.compiled.has_wide_products
    assert not executor(model, batch_invariant=False).separates_prompts
    assert not executor(model, exact=True).separates_prompts
    assert not EagerExecutor(model, ReferenceKernels(batch_invariant=True), torch.float32).separates_prompts  # type: ignore[arg-type]


def test_logits_are_computed_in_whole_numbers_however_many_rows_ask_for_them(
    model: TwoLayers, native: NativeExecutor
) -> None:
    hidden = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(3))
    together = native.logits(hidden, ())
    assert torch.equal(together, torch.cat([native.logits(row, ()) for row in torch.split(hidden, 1)]))
