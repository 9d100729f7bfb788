"""Every architecture, in every format, with every kind of adapter, against transformers and PEFT in float32.

The models are tiny and random, the weights those that the file dequantizes to. Sequences reach past the sliding window
and past the length from which LongRoPE has other factors. The bar is 1e-3 on logits of size 3 to 9; what is found is 0
for most of them in torch, and less than 1e-4 in compiled code: sums in another order.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference_svc.adapters import selection
from inference_svc.models.architectures import ARCHITECTURES
from tests.parity.adapter_cases import CASES, LOGITS_BAR, check
from tests.parity.architecture_pairs import FORMATS, IDS, Pair, logits_of, on_compiled_code, written_model
from tests.parity.executors import reference
from tests.parity.served import ServedModel
from tests.parity.tiny_models import FOLDER_VARIANTS, ORIGINAL_LENGTH, TINY_MODELS, VARIANTS, TinyModel

# PEFT warns of tied heads, transformers of configs that it does not like.
pytestmark = pytest.mark.filterwarnings("ignore")
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


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_cell(make: Make, tmp_path: Path, name: str, form: str, kind: str) -> None:
    pair = make(TINY_MODELS[name], form)
    # The GGUF files of a Mistral are those of a Llama with a window.
    assert pair.base.architecture == ("llama" if name == "mistral" and form != "safetensors" else name)
    check(pair, kind, tmp_path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", VARIANTS)
def test_what_else_the_files_of_an_architecture_say(make: Make, tmp_path: Path, name: str, form: str) -> None:
    check(make(VARIANTS[name], form), "base", tmp_path)


@pytest.mark.parametrize("name", FOLDER_VARIANTS)
def test_what_only_config_json_can_say(make: Make, tmp_path: Path, name: str) -> None:
    check(make(FOLDER_VARIANTS[name], "safetensors"), "base", tmp_path)


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


# How README.md calls architectures, formats and kinds of adapters.
ROWS = {
    "Llama": ["llama"],
    "Mistral": ["mistral"],
    "Phi-3": ["phi3"],
    "Gemma": ["gemma", "gemma2"],
    "Qwen2": ["qwen2"],
    "Phi-2": ["phi"],
    "StarCoder2": ["starcoder2"],
    "Mixtral": ["mixtral"],
}
COLUMNS = {
    "folder": "safetensors",
    "GGUF float": "gguf",
    "GGUF quantized": "gguf-q8_0",
    "LoRA": "lora",
    "weighted": "weighted",
    "DoRA": "dora",
    "X-LoRA": "xlora",
}


def test_the_table_of_the_readme_says_what_is_tested_here() -> None:
    # `test_a_cell` has every architecture in every format with every kind: of those, columns and rows must be.
    lines = (Path(__file__).resolve().parents[2] / "README.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| architecture |"))
    header, _, *rows = [
        cells_of(line) for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    ]
    assert {COLUMNS[name] for name in header[1:]} <= {*FORMATS, *CASES}
    names = []
    for name, *cells in rows:
        names += ROWS[re.split(r"[ ,]", name)[0]]
        for column, cell in zip(header[1:], cells, strict=True):
            assert cell.startswith("yes"), (name, column)
    assert sorted(names) == sorted(TINY_MODELS)


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
