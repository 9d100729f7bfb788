"""In batch-invariant mode an answer is the same to the bit alone and in any crowd."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inference_svc.adapters.selection import BaseSelection, LoraSelection, Mixture, Selection, XLoraSelection
from inference_svc.scheduling.chunks import next_tokens
from inference_svc.scheduling.sequence import Sequence
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


@dataclass(frozen=True)
class Text:
    """A prompt and what was generated after it."""

    token_ids: list[int]
    num_prompt_tokens: int

    def start(self, served: ServedModel, mixture: Mixture) -> Sequence:
        return served.start(self.token_ids, mixture, self.num_prompt_tokens)


def alone(served: ServedModel, text: Text, mixture: Mixture) -> Tensor:
    """Logits of a prompt in one pass and of each token after it in a pass of its own."""
    sequence = text.start(served, mixture)
    chunks = [text.num_prompt_tokens] + [1] * (len(text.token_ids) - text.num_prompt_tokens)
    logits = [served.step([(sequence, mixture, chunk)])[0].logits for chunk in chunks]
    served.finish(sequence)
    return torch.cat([torch.from_numpy(rows) for rows in logits if rows is not None])


def together(served: ServedModel, texts: list[Text], mixtures: list[Mixture], shuffle: random.Random) -> list[Tensor]:
    """Logits of all texts run in one crowd: cut at random, in random order, joining at different steps."""
    sequences = [text.start(served, mixture) for text, mixture in zip(texts, mixtures, strict=True)]
    logits: list[list[Tensor]] = [[] for _ in texts]
    while open_ones := [i for i, s in enumerate(sequences) if s.num_pending]:
        chosen = shuffle.sample(open_ones, shuffle.randint(1, len(open_ones)))
        parts = []
        for i in chosen:
            room = shuffle.randint(1, sequences[i].num_pending)
            parts.append((sequences[i], mixtures[i], next_tokens(sequences[i], room).num_tokens))
        for i, result in zip(chosen, served.step(parts), strict=True):
            assert result.logits is not None
            logits[i].append(torch.from_numpy(result.logits))
    for sequence in sequences:
        served.finish(sequence)
    return [torch.cat(rows) for rows in logits]


def test_logits_in_a_crowd_are_those_alone_to_the_bit(served: ServedModel, request: pytest.FixtureRequest) -> None:
    is_native = request.node.callspec.params["served"] == "native"
    shuffle = random.Random(3)
    longest = 40 if is_native else 14  # the exact ones take half a second a step
    lengths = [shuffle.randint(3, longest) for _ in SELECTIONS]
    texts = [
        Text([shuffle.randrange(100, 49000) for _ in range(length)], shuffle.randint(length // 2, length))
        for length in lengths
    ]
    mixtures = [served.mixture(selection) for selection in SELECTIONS]
    solos = [alone(served, text, mixture) for text, mixture in zip(texts, mixtures, strict=True)]
    for _ in range(5 if is_native else 1):
        for solo, crowd in zip(solos, together(served, texts, mixtures, shuffle), strict=True):
            assert torch.equal(solo, crowd)


def test_a_row_without_adapters_is_the_base_to_the_bit_beside_rows_with_adapters(served: ServedModel) -> None:
    prompt = list(range(1000, 1012))
    base, _ = served.run(prompt, BaseSelection(), [12])
    nothing, _ = served.run(prompt, LoraSelection({"pirate": 0.0}), [12])
    assert torch.equal(base, nothing)
