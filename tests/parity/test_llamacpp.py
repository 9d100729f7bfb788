"""Greedy tokens of every architecture against those of llama.cpp, recorded by `record_llamacpp.py` from the same files.

Both compute in float32, llama.cpp's GELU by a table of float16. The closest choice has a margin of 0.0006, and the
logits of the two differ by less, as the tokens say.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from inference_svc.adapters.selection import BaseSelection
from inference_svc.models.architectures import ARCHITECTURES
from tests.parity.executors import reference
from tests.parity.record_llamacpp import EOS, GOLDEN, MODELS, NEW_TOKENS, VOCABULARY, prompts
from tests.parity.served import ServedModel
from tests.parity.tiny_models import write_gguf

ANSWERS = json.loads(GOLDEN.read_text())["answers"]


@pytest.mark.parametrize("name", MODELS)
def test_the_tokens_are_those_that_llamacpp_chose(tmp_path: Path, name: str) -> None:
    tiny = MODELS[name]
    write_gguf(tiny.build(), tmp_path / "model.gguf", tiny.arch, GGMLQuantizationType.F32, VOCABULARY)
    served = ServedModel(tmp_path / "model.gguf", reference)
    for prompt, answer in zip(prompts(name), ANSWERS[name], strict=True):
        assert len(answer) == NEW_TOKENS
        text = [*prompt, *answer]
        logits, _ = served.run(text[:-1], BaseSelection(), (len(text) - 1,))
        chosen = logits[len(prompt) - 1 :]
        chosen[:, EOS] = -float("inf")
        assert chosen.argmax(dim=1).tolist() == answer


def test_every_architecture_is_among_them() -> None:
    assert ARCHITECTURES.keys() <= ANSWERS.keys() == MODELS.keys()
