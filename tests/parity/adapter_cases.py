"""Every kind of adapter on every module of a model: what is served, and what PEFT computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from inference_svc.adapters import selection
from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.lora import load_lora
from inference_svc.adapters.xlora import load_xlora
from tests.parity.architecture_pairs import CHUNKS, IDS, Pair, logits_of, mixture_on_every_module, peft_on_every_module
from tests.parity.merged_experts import merged_model, unfused_adapters
from tests.parity.peft_files import written
from tests.parity.xlora_oracle import peft_answer

LOGITS_BAR, SCALINGS_BAR = 1e-3, 1e-4
WEIGHTS = (0.7, -0.4)


@dataclass(frozen=True, slots=True)
class Case:
    """A request, and its answer: float32 [tokens, vocab_size]; of an X-LoRA scalings [tokens, layers, adapters] too."""

    mixture: selection.Mixture
    logits: Tensor
    scalings: Tensor | None = None


def base(pair: Pair, _: Path) -> Case:
    """No adapter."""
    return Case(selection.Mixture(), logits_of(pair.oracle))


def lora(pair: Pair, folder: Path) -> Case:
    """One LoRA."""
    return _one(pair, folder, use_dora=False)


def dora(pair: Pair, folder: Path) -> Case:
    """One DoRA."""
    return _one(pair, folder, use_dora=True)


def weighted(pair: Pair, folder: Path) -> Case:
    """A sum of two LoRAs, one of them taken away."""
    if pair.has_experts:
        adapters = unfused_adapters(pair, 2)
        expected = logits_of(merged_model(pair.oracle, adapters, WEIGHTS))
    else:
        adapters = peft_on_every_module(pair.oracle, pair.base, count=2)
        adapters.add_weighted_adapter(["a0", "a1"], list(WEIGHTS), "sum", combination_type="cat")
        adapters.set_adapter("sum")
        expected = logits_of(adapters)
    banks = [load_lora(written(adapters, n, folder / n), pair.base, AdapterLimits()).bank for n in ("a0", "a1")]
    constant = tuple(selection.WeightedBank(bank, weight) for bank, weight in zip(banks, WEIGHTS, strict=True))
    return Case(selection.Mixture(constant=constant), expected)


def xlora(pair: Pair, folder: Path) -> Case:
    """A mixture of two LoRAs. PEFT's adapt modules: not experts that transformers has fused, nor their router."""
    shapes = {path: shape for path, shape in pair.base.linear_shapes.items() if "block_sparse_moe" not in path}
    mixture = mixture_on_every_module(pair.base, shapes)
    logits, scalings = peft_answer(pair.oracle, mixture, mixture.write(folder, "original"), IDS)
    # No ordering: the rows are in the order of the model's modules, which must be PEFT's.
    loaded = load_xlora(mixture.write(folder, "peft"), (), {}, pair.base, AdapterLimits())
    return Case(selection.Mixture(xlora=selection.XLoraMixture(loaded.bank, loaded.classifier)), logits, scalings)


CASES: Mapping[str, Callable[[Pair, Path], Case]] = {
    "base": base,
    "lora": lora,
    "weighted": weighted,
    "dora": dora,
    "xlora": xlora,
}


def _one(pair: Pair, folder: Path, *, use_dora: bool) -> Case:
    if pair.has_experts:
        adapters = unfused_adapters(pair, 1, use_dora=use_dora)
        expected = logits_of(merged_model(pair.oracle, adapters, (1.0,)))
    else:
        adapters = peft_on_every_module(pair.oracle, pair.base, use_dora=use_dora)
        expected = logits_of(adapters)
    loaded = load_lora(written(adapters, "a0", folder / "a0"), pair.base, AdapterLimits())
    assert loaded.bank.deltas.keys() == pair.base.linear_shapes.keys()
    return Case(selection.Mixture(constant=(selection.WeightedBank(loaded.bank, 1.0),)), expected)


def check(pair: Pair, kind: str, folder: Path) -> None:
    """Serve a case on every executor, whole and as it is decoded, within the bar of what is expected."""
    case = CASES[kind](pair, folder)
    if kind != "base":  # else nothing would be compared
        assert (case.logits - logits_of(pair.oracle)).abs().max() > 100 * LOGITS_BAR
    for served in pair.every_served:
        for chunks in CHUNKS:
            logits, scalings = served.run_mixture(IDS, case.mixture, chunks)
            assert (logits - case.logits).abs().max() <= LOGITS_BAR
            if case.scalings is not None:
                assert scalings is not None
                assert (scalings - case.scalings).abs().max() <= SCALINGS_BAR
