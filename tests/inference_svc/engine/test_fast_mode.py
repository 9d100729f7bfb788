"""In the fast mode prompts are computed with all else, and so shared with all else."""

from __future__ import annotations

from pathlib import Path

from inference_svc.engine.engine import Engine, EngineConfig
from tests.inference_svc.engine.crowd import KINDS, SYSTEM_PROMPT, finished_of, request, rows_of_passes, tiny_registry
from tests.inference_svc.engine.tiny_engine import Reader, native_base_model, when_idle


def test_a_scaling_pass_shares_its_blocks_with_the_base_model_and_a_prompt_those_of_an_answer(tmp_path: Path) -> None:
    base = native_base_model(tmp_path, batch_invariant=False)
    assert not base.executor.separates_prompts
    engine = Engine(base, tiny_registry(base, tmp_path), EngineConfig(speculative_tokens=0))
    engine.start()
    rows = rows_of_passes(engine)
    for kind in ("base", "xlora"):
        finished_of(Reader(engine, request(KINDS[kind], SYSTEM_PROMPT, new=1)))
    assert rows == [37, 5, 37]
    reader = Reader(engine, request(KINDS["base"], SYSTEM_PROMPT, new=30))
    finished_of(reader)
    answer = [token.token_id for event in reader.events for token in getattr(event, "tokens", ())]
    again = Reader(engine, request(KINDS["base"], (*SYSTEM_PROMPT, *answer, 1), new=1))
    assert finished_of(again).cached_prompt_tokens == 64
    when_idle(engine)
    engine.stop()
