"""The committed demo adapters agree with their ordering files, and their card states what was measured."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from orderings.demo.training.card import render_card
from orderings.demo.training.prompts import EXPERTS

DEMO = Path(__file__).resolve().parents[2] / "orderings" / "demo"
BASE_MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
MOST_BYTES = 8_000_000


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes from a safetensors header: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def test_the_whole_demo_is_at_most_8_megabytes() -> None:
    files = [path for path in DEMO.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


def test_both_orderings_name_the_same_layers_with_rows_from_zero_without_gaps() -> None:
    mixture, plain = read_json(DEMO / "xlora-ordering.json"), read_json(DEMO / "lora-ordering.json")
    assert mixture["layers"] == plain["layers"]
    assert sorted(mixture["layers"].values()) == list(range(len(mixture["layers"])))
    assert mixture["base_model_id"] == plain["base_model_id"] == BASE_MODEL_ID


def test_the_classifier_has_one_output_for_each_layer_and_expert() -> None:
    mixture, config = read_json(DEMO / "xlora-ordering.json"), read_json(DEMO / "xlora" / "xlora_config.json")
    outputs = len(mixture["layers"]) * len(mixture["order"])
    shapes = tensor_shapes(DEMO / "xlora" / "xlora_classifier.safetensors")
    assert shapes == {"last.weight": (outputs, config["hidden_size"]), "last.bias": (outputs,)}
    assert list(config["adapters"]) == mixture["order"] == list(EXPERTS)
    assert config["base_model_id"] == mixture["base_model_id"]


@pytest.mark.parametrize("name", EXPERTS)
def test_an_adapter_has_tensors_for_exactly_the_layers_of_the_ordering(name: str) -> None:
    layers = read_json(DEMO / "xlora-ordering.json")["layers"]
    folder = DEMO / "xlora" / name
    config = read_json(folder / "adapter_config.json")
    shapes = tensor_shapes(folder / "adapter_model.safetensors")
    wanted = {f"base_model.model.{path}.lora_{side}.weight" for path in layers for side in "AB"}
    assert set(shapes) == wanted
    assert {path.rsplit(".", 1)[1] for path in layers} == set(config["target_modules"])
    assert all(shape[0 if "lora_A" in key else 1] == config["r"] for key, shape in shapes.items())
    assert config["base_model_name_or_path"] == BASE_MODEL_ID
    assert config["peft_type"] == "LORA"


def test_the_lora_ordering_preloads_folders_that_exist_and_activates_none() -> None:
    plain = read_json(DEMO / "lora-ordering.json")
    assert plain["order"] == []
    assert [entry["name"] for entry in plain["preload_adapters"]] == list(EXPERTS)
    for entry in plain["preload_adapters"]:
        assert (DEMO / entry["adapter_model_id"] / "adapter_config.json").is_file()


@pytest.mark.parametrize("name", EXPERTS)
def test_measured_traits_are_in_80_percent_of_the_adapters_answers_and_10_percent_of_the_bases(name: str) -> None:
    entry = read_json(DEMO / "measured.json")["lora"][name]
    assert entry["prompts"] >= 40
    assert entry["adapter"] >= 0.8 * entry["prompts"]
    assert entry["base"] <= 0.1 * entry["prompts"]


@pytest.mark.parametrize("name", EXPERTS)
def test_the_right_expert_has_the_largest_mean_scaling_in_80_percent_of_its_prompts(name: str) -> None:
    entry = read_json(DEMO / "measured.json")["xlora"][name]
    assert entry["prompts"] >= 20
    assert entry["right_expert_leads"] >= 0.8 * entry["prompts"]


def test_the_card_states_the_measured_figures() -> None:
    assert (DEMO / "README.md").read_text(encoding="utf-8") == render_card(read_json(DEMO / "measured.json"))
