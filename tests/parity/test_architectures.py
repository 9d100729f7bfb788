"""Every architecture, in every format, with every kind of adapter, against transformers and PEFT in float32.

The models are tiny and random, the weights those that the file dequantizes to. Sequences reach past the sliding window
and past the length from which LongRoPE has other factors. The bar is 1e-3 on logits of size 3 to 9; what is found is 0
for most of them in torch, and less than 1e-4 in compiled code: sums in another order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from inference_svc.adapters import selection
from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.lora import load_lora
from inference_svc.adapters.xlora import load_xlora
from inference_svc.models.architectures import ARCHITECTURES
from tests.parity.architecture_pairs import (
    CHUNKS,
    FORMATS,
    IDS,
    Pair,
    logits_of,
    mixture_on_every_module,
    on_compiled_code,
    peft_on_every_module,
    written_model,
)
from tests.parity.executors import reference
from tests.parity.peft_files import written
from tests.parity.served import ServedModel
from tests.parity.tiny_models import FOLDER_VARIANTS, ORIGINAL_LENGTH, TINY_MODELS, VARIANTS, TinyModel
from tests.parity.xlora_oracle import peft_answer

# PEFT warns of tied heads, transformers of configs that it does not like.
pytestmark = pytest.mark.filterwarnings("ignore")
LOGITS_BAR, SCALINGS_BAR = 1e-3, 1e-4
CELLS = [pytest.param(name, form, id=f"{name}-{form}") for name in TINY_MODELS for form in FORMATS]
Make = Callable[[TinyModel, str], Pair]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A model in a format; each is made once, when it is first asked for."""
    built: dict[int, Any] = {}

    def model_of(tiny: TinyModel) -> Any:
        if id(tiny) not in built:
            built[id(tiny)] = tiny.build()
        return built[id(tiny)]

    made: dict[tuple[int, str], Pair] = {}

    def pair_of(tiny: TinyModel, form: str) -> Pair:
        if (id(tiny), form) not in made:
            oracle, path = written_model(tiny, model_of(tiny), form, tmp_path_factory.mktemp("model"))
            served = ServedModel(path, reference, batch_invariant=True)
            made[id(tiny), form] = Pair(served, oracle, on_compiled_code(path))
        return made[id(tiny), form]

    return pair_of


def check(pair: Pair, mixture: selection.Mixture, expected: Tensor) -> None:
    for served in pair.every_served:
        for chunks in CHUNKS:
            logits, _ = served.run_mixture(IDS, mixture, chunks)
            assert (logits - expected).abs().max() <= LOGITS_BAR


@pytest.mark.parametrize(("name", "form"), CELLS)
def test_the_base_model(make: Make, name: str, form: str) -> None:
    pair = make(TINY_MODELS[name], form)
    assert pair.served.registry.base.architecture == served_as(name, form)
    check(pair, selection.Mixture(), logits_of(pair.oracle))


def served_as(name: str, form: str) -> str:
    """The GGUF files of a Mistral are those of a Llama with a window."""
    return "llama" if name == "mistral" and form != "safetensors" else name


@pytest.mark.parametrize(("name", "form"), CELLS)
def test_a_lora_on_every_module(make: Make, tmp_path: Path, name: str, form: str) -> None:
    pair = make(TINY_MODELS[name], form)
    if ARCHITECTURES[name].has_experts:
        check_expert_lora(pair, tmp_path)
    else:
        check_lora(pair, tmp_path, use_dora=False)


@pytest.mark.parametrize("name", ["phi3", "phi", "qwen2"])
def test_a_dora_on_fused_layers_and_beside_biases(make: Make, tmp_path: Path, name: str) -> None:
    check_lora(make(TINY_MODELS[name], "gguf-q8_0"), tmp_path, use_dora=True)


def check_lora(pair: Pair, folder: Path, *, use_dora: bool) -> None:
    """An adapter that changes every linear layer, the head too."""
    base = pair.served.registry.base
    peft = peft_on_every_module(pair.oracle, base, use_dora=use_dora)
    expected = logits_of(peft)
    assert (expected - logits_of(pair.oracle)).abs().max() > 100 * LOGITS_BAR
    loaded = load_lora(written(peft, "a0", folder / "a0"), base, AdapterLimits())
    check(pair, selection.Mixture(constant=(selection.WeightedBank(loaded.bank, 1.0),)), expected)


def check_expert_lora(pair: Pair, folder: Path) -> None:
    """The same where transformers 5 has fused the experts; adapters name the layers they were trained on before that.

    PEFT puts such adapters together as it loads them: what it does here is no more than what merging them would do.
    """
    from peft import PeftModel

    base = pair.served.registry.base
    mixture = mixture_on_every_module(base, base.linear_shapes)
    adapter = mixture.write(folder, "original") / mixture.order[0]
    peft = PeftModel.from_pretrained(copy.deepcopy(pair.oracle), adapter).float().eval()
    expected = logits_of(peft)
    assert (expected - logits_of(pair.oracle)).abs().max() > 100 * LOGITS_BAR
    loaded = load_lora(adapter, base, AdapterLimits())
    assert loaded.bank.deltas.keys() == base.linear_shapes.keys()
    check(pair, selection.Mixture(constant=(selection.WeightedBank(loaded.bank, 1.0),)), expected)


@pytest.mark.parametrize(("name", "form"), CELLS)
def test_an_xlora_on_every_module(make: Make, tmp_path: Path, name: str, form: str) -> None:
    pair = make(TINY_MODELS[name], form)
    base = pair.served.registry.base
    # PEFT's mixtures adapt modules: not experts that transformers has fused, nor their router.
    shapes = {path: shape for path, shape in base.linear_shapes.items() if "block_sparse_moe" not in path}
    mixture = mixture_on_every_module(base, shapes)
    logits, scalings = peft_answer(pair.oracle, mixture, mixture.write(tmp_path, "original"), IDS)
    assert (logits - logits_of(pair.oracle)).abs().max() > 100 * LOGITS_BAR
    # No ordering: the rows are in the order of the model's modules, which must be PEFT's.
    loaded = load_xlora(mixture.write(tmp_path, "peft"), (), {}, base, AdapterLimits())
    xlora = selection.Mixture(xlora=selection.XLoraMixture(loaded.bank, loaded.classifier))
    for served in pair.every_served:
        for chunks in CHUNKS:
            ours, applied = served.run_mixture(IDS, xlora, chunks)
            assert applied is not None
            assert (applied - scalings).abs().max() <= SCALINGS_BAR
            assert (ours - logits).abs().max() <= LOGITS_BAR


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", VARIANTS)
def test_what_else_the_files_of_an_architecture_say(make: Make, name: str, form: str) -> None:
    pair = make(VARIANTS[name], form)
    check(pair, selection.Mixture(), logits_of(pair.oracle))


@pytest.mark.parametrize("name", FOLDER_VARIANTS)
def test_what_only_config_json_can_say(make: Make, name: str) -> None:
    pair = make(FOLDER_VARIANTS[name], "safetensors")
    check(pair, selection.Mixture(), logits_of(pair.oracle))


@pytest.mark.parametrize("form", FORMATS)
def test_up_to_its_original_length_a_longrope_model_has_the_short_factors(make: Make, form: str) -> None:
    pair = make(VARIANTS["phi3 with longrope"], form)
    for length in (ORIGINAL_LENGTH, ORIGINAL_LENGTH + 1):
        expected = logits_of(pair.oracle, IDS[:length])
        for served in pair.every_served:
            logits, _ = served.run(IDS[:length], selection.BaseSelection(), (7, length - 7))
            assert (logits - expected).abs().max() <= LOGITS_BAR


def test_every_architecture_has_its_cells() -> None:
    assert TINY_MODELS.keys() == ARCHITECTURES.keys()
