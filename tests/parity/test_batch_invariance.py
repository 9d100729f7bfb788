"""In batch-invariant mode an answer is the same to the bit alone and in any crowd."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inference_svc.adapters.selection import BaseSelection, LoraSelection, Selection, XLoraSelection
from tests.parity.executors import ALL
from tests.parity.served import EXPERTS, ServedModel, serve_on

DEMO = Path(__file__).resolve().parents[2] / "orderings" / "demo"
SELECTIONS: list[Selection] = [
    BaseSelection(),
    LoraSelection({"pirate": 1.0}),
    LoraSelection({"json": 1.0}),
    LoraSelection({"pirate": 0.5, "verse": -0.25}),
    LoraSelection({"verse": 1.0, "capitals": 0.5, "pirate": 0.25}),
    XLoraSelection("mixture"),
    XLoraSelection("mixture"),
]


@pytest.fixture(scope="module", params=ALL)
def served(request: pytest.FixtureRequest, smollm2_gguf: Path) -> ServedModel:
    model = serve_on(request.param, smollm2_gguf, batch_invariant=True)
    layers = json.loads((DEMO / "xlora-ordering.json").read_text())["layers"]
    model.load_demo(DEMO / "xlora", EXPERTS, layers)
    return model


def together(served: ServedModel, prompts: list[list[int]], shuffle: random.Random) -> list[Tensor]:
    """Logits of all prompts run in one crowd: cut at random, in random order, joining at different steps."""
    mixtures = [served.mixture(selection) for selection in SELECTIONS]
    sequences = [served.start(p, m) for p, m in zip(prompts, mixtures, strict=True)]
    logits: list[list[Tensor]] = [[] for _ in prompts]
    while open_ones := [i for i, s in enumerate(sequences) if s.num_pending]:
        chosen = shuffle.sample(open_ones, shuffle.randint(1, len(open_ones)))
        parts = [(sequences[i], mixtures[i], shuffle.randint(1, sequences[i].num_pending)) for i in chosen]
        for i, result in zip(chosen, served.step(parts), strict=True):
            assert result.logits is not None
            logits[i].append(torch.from_numpy(result.logits))
    for sequence in sequences:
        served.finish(sequence)
    return [torch.cat(rows) for rows in logits]


def test_logits_in_a_crowd_are_those_alone_to_the_bit(served: ServedModel, request: pytest.FixtureRequest) -> None:
    shuffle = random.Random(3)
    prompts = [[shuffle.randrange(100, 49000) for _ in range(shuffle.randint(3, 14))] for _ in SELECTIONS]
    alone = [served.run(p, s, [len(p)])[0] for p, s in zip(prompts, SELECTIONS, strict=True)]
    # The exact ones take half a second a step.
    for _ in range(5 if request.node.callspec.params["served"] == "native" else 1):
        for solo, crowd in zip(alone, together(served, prompts, shuffle), strict=True):
            assert torch.equal(solo, crowd)


def test_a_row_without_adapters_is_the_base_to_the_bit_beside_rows_with_adapters(served: ServedModel) -> None:
    prompt = list(range(1000, 1012))
    base, _ = served.run(prompt, BaseSelection(), [12])
    nothing, _ = served.run(prompt, LoraSelection({"pirate": 0.0}), [12])
    assert torch.equal(base, nothing)
