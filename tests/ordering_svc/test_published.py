"""The orderings of the published X-LoRA models follow from the configs of their bases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ordering_svc.domain.generation import generate
from ordering_svc.domain.ordering import AdapterKind
from ordering_svc.domain.ordering_json import render_file
from ordering_svc.domain.target_selection import TargetSelection
from ordering_svc.domain.validation import Expectations, validate_file
from ordering_svc.model_config.model import model_of_config
from ordering_svc.patterns.bounded import match_paths

PUBLISHED = Path(__file__).parents[2] / "orderings" / "published"
FIVE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj")

CASES = {
    "xlora-zephyr-7b.json": ("zephyr-7b-beta", "HuggingFaceH4/zephyr-7b-beta", FIVE, 9, 160),
    "xlora-gemma-7b.json": ("gemma-7b-it", "google/gemma-7b-it", (*FIVE, "up_proj", "down_proj"), 4, 196),
}


@pytest.mark.parametrize("name", CASES)
def test_a_published_ordering_is_what_generate_makes_of_the_config(name: str) -> None:
    folder, base_model_id, targets, num_adapters, num_layers = CASES[name]
    model = model_of_config((PUBLISHED / folder / "config.json").read_bytes(), base_model_id, folder)
    adapters = [f"adapter_{number}" for number in range(1, num_adapters + 1)]
    document = generate(model.structure, TargetSelection(targets), adapters, base_model_id, match_paths)
    published = (PUBLISHED / name).read_bytes()
    assert published == render_file(document)
    assert len(json.loads(published)["layers"]) == num_layers
    problems = validate_file(published, Expectations(AdapterKind.XLORA, model.structure))
    assert [problem for problem in problems if problem.is_error] == []


def test_the_first_and_the_last_rows_are_those_that_the_models_were_trained_with() -> None:
    zephyr = json.loads((PUBLISHED / "xlora-zephyr-7b.json").read_text())["layers"]
    gemma = json.loads((PUBLISHED / "xlora-gemma-7b.json").read_text())["layers"]
    # As in the ordering files that the reference system published for lamm-mit/x-lora and lamm-mit/x-lora-gemma-7b.
    assert zephyr["model.layers.0.mlp.gate_proj"] == 4
    assert zephyr["model.layers.17.self_attn.o_proj"] == 88
    assert zephyr["model.layers.31.mlp.gate_proj"] == 159
    assert gemma["model.layers.0.mlp.up_proj"] == 5
    assert gemma["model.layers.13.self_attn.v_proj"] == 93
    assert gemma["model.layers.27.mlp.down_proj"] == 195
