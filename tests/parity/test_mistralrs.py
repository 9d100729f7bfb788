"""Greedy answers of the demo mixture against those of mistral.rs 0.3.2, recorded by `record_mistralrs.py`.

It counts decode passes as we do, as long as a prompt has more than one token. Its weights were those of the file in
float32; the closest choice among the recorded ones has a margin of 0.002, and ours differ by less than 0.001.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.selection import XLoraSelection
from inference_svc.adapters.xlora import load_xlora
from inference_svc.engine.engine import Engine, EngineConfig
from inference_svc.engine.request import (
    Finished,
    FinishReason,
    GenerationRequest,
    Output,
    Sampling,
    Stopping,
    XLoraOptions,
)
from inference_svc.models.base_model import BaseModel, open_base_model
from inference_svc.scheduling.granularity import EVERY_TOKEN, FrozenAfter
from tests.inference_svc.engine.tiny_engine import Reader

DEMO = Path(__file__).resolve().parents[2] / "orderings" / "demo"
# Of the forty that are recorded: as many as tell the granularities apart, which only this prompt does.
NEW_TOKENS = {"plain text": 28}
GOLDEN = json.loads(Path(__file__).with_name("mistralrs_golden.json").read_text())


@pytest.fixture(scope="module")
def base(smollm2_gguf: Path) -> BaseModel:
    return open_base_model(
        str(smollm2_gguf), base_model_id=None, device="cpu", kernels="native-exact", batch_invariant=False
    ).load()


@pytest.fixture(scope="module")
def engine(base: BaseModel) -> Iterator[Engine]:
    registry = AdapterRegistry(base.shape, AdapterLimits())
    ordering = json.loads((DEMO / "xlora-ordering.json").read_text())
    mixture = load_xlora(DEMO / "xlora", ordering["order"], ordering["layers"], base.shape, AdapterLimits())
    registry.load("mixture", mixture, source="demo")
    subject = Engine(base, registry, EngineConfig(slow_reader_seconds=600))
    subject.start()
    yield subject
    subject.stop()


def test_every_answer_is_the_recorded_one(engine: Engine, base: BaseModel) -> None:
    """All of them run at once, which mistral.rs cannot."""
    readers = {}
    for granularity, index in GOLDEN["granularities"].items():
        for name, prompt in GOLDEN["prompts"].items():
            what = GenerationRequest(
                name,
                tuple(base.tokenizer.encode(prompt)),
                XLoraSelection("mixture"),
                Sampling(temperature=0.0),
                Stopping(max_tokens=NEW_TOKENS.get(name, 16)),
                xlora=XLoraOptions(EVERY_TOKEN if index is None else FrozenAfter(index)),
            )
            readers[granularity, name] = Reader(engine, what)
    for (granularity, name), reader in readers.items():
        recorded = GOLDEN["answers"][granularity][name]
        *events, finished = reader.until_the_end()
        assert isinstance(finished, Finished)
        text = "".join(event.text for event in events if isinstance(event, Output))
        assert finished.prompt_tokens == recorded["prompt_tokens"], name
        if finished.reason is FinishReason.MAX_TOKENS:
            assert recorded["tokens"] > NEW_TOKENS.get(name, 16)
            assert recorded["text"].strip().startswith(text.strip()), (granularity, name)
        else:
            assert (text.strip(), "stop") == (recorded["text"].strip(), recorded["finish_reason"]), (granularity, name)


def test_what_is_compared_of_the_answers_tells_the_granularities_apart(base: BaseModel) -> None:
    (name, count), *_ = NEW_TOKENS.items()
    tokens = [tuple(base.tokenizer.encode(answers[name]["text"])[:count]) for answers in GOLDEN["answers"].values()]
    assert len({*tokens}) == len(GOLDEN["granularities"])
