"""The scheduler: order, budget, blocks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference_svc.kv_cache.blocks import BlockPool
from inference_svc.scheduling.scheduler import Scheduler
from inference_svc.scheduling.sequence import Sequence


def sequence(prompt: int, total: int, *, xlora: bool = False, name: str = "r") -> Sequence:
    return Sequence(name, list(range(prompt)), prompt, total, needs_scaling_pass=xlora)


def scheduler(blocks: int = 8, *, max_running: int = 4, max_batch_tokens: int = 8) -> Scheduler:
    return Scheduler(BlockPool(blocks, 4), max_running=max_running, max_batch_tokens=max_batch_tokens)


def run_step(subject: Scheduler) -> dict[str, int]:
    """Advance everything that is scheduled, as the engine does; tokens by request."""
    tokens = {}
    for item in subject.schedule():
        tokens[item.sequence.request_id] = item.num_tokens
        ends = item.reaches_end
        item.sequence.num_computed += item.num_tokens
        if ends:
            item.sequence.token_ids.append(0)
            if len(item.sequence.token_ids) >= item.sequence.max_total_tokens:
                subject.remove(item.sequence)
    return tokens


def test_a_long_prompt_is_cut_into_chunks_of_the_budget() -> None:
    subject = scheduler()
    subject.add(sequence(20, 22))
    assert [run_step(subject) for _ in range(4)] == [{"r": 8}, {"r": 8}, {"r": 4}, {"r": 1}]


def test_decoding_goes_before_a_prompt_that_fills_the_budget() -> None:
    subject = scheduler(blocks=16)
    subject.add(sequence(2, 12, name="decoding"))
    run_step(subject)
    subject.add(sequence(20, 22, name="long"))
    assert run_step(subject) == {"decoding": 1, "long": 7}


def test_a_request_waits_until_all_its_blocks_are_free() -> None:
    subject = scheduler(blocks=4)
    subject.add(sequence(4, 12, name="first"))
    subject.add(sequence(4, 8, name="second"))
    assert run_step(subject) == {"first": 4}
    assert subject.num_waiting == 1


def test_an_xlora_request_holds_twice_the_blocks() -> None:
    subject = scheduler()
    subject.add(sequence(4, 8, xlora=True))
    subject.schedule()
    assert subject.pool.num_free == 8 - 4


def test_requests_are_admitted_in_order_even_if_a_later_one_would_fit() -> None:
    subject = scheduler(blocks=4)
    subject.add(sequence(4, 12, name="first"))
    subject.add(sequence(4, 16, name="big"))
    subject.add(sequence(1, 2, name="small"))
    assert run_step(subject) == {"first": 4}
    assert subject.num_waiting == 2


@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 8), st.booleans(), st.integers(0, 12)), min_size=1, max_size=12
    )
)
def test_every_request_ends_and_every_block_comes_back(requests: list[tuple[int, int, bool, int]]) -> None:
    subject = scheduler(blocks=16)
    pending = [
        (start, sequence(prompt, prompt + new, xlora=xlora, name=str(i)))
        for i, (prompt, new, xlora, start) in enumerate(requests)
    ]
    step = 0
    while pending or subject.has_work:
        for item in [p for p in pending if p[0] <= step]:
            pending.remove(item)
            subject.add(item[1])
        assert sum(run_step(subject).values()) <= subject.max_batch_tokens
        subject.pool.check_integrity()
        step += 1
        assert step < 1000
    assert subject.pool.num_free == subject.pool.num_blocks
