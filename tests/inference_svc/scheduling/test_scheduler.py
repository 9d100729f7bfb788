"""The scheduler: order, budget, blocks, shared prefixes, preemption."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_svc.kv_cache.block_table import BlockTable
from inference_svc.kv_cache.blocks import BlockPool
from inference_svc.scheduling.granularity import (
    EVERY_TOKEN,
    FrozenAfter,
    FrozenWhenSettled,
    Granularity,
    RecomputedEvery,
)
from inference_svc.scheduling.scheduler import Scheduler
from inference_svc.scheduling.sequence import ScheduledSequence, Sequence
from inference_svc.scheduling.speculation import Speculation


def sequence(
    prompt: int,
    total: int,
    *,
    xlora: bool = False,
    name: str = "r",
    kind: str | None = None,
    reports: bool = False,
    switch: int | None = None,
    granularity: Granularity = EVERY_TOKEN,
    separates: bool = False,
) -> Sequence:
    """`kind` names what computes the blocks; None: they are not shared. `separates`: prompts from what is generated."""
    return Sequence(
        name,
        list(range(prompt)),
        prompt,
        total,
        needs_scaling_pass=xlora,
        granularity=granularity,
        reports_positions=reports,
        blocks=BlockTable(kind),
        scaling_blocks=BlockTable(kind and "base"),
        switch_length=switch,
        separates_prompts=separates,
    )


def scheduler(blocks: int = 8, *, max_running: int = 4, max_batch_tokens: int = 8) -> Scheduler:
    return Scheduler(BlockPool(blocks, 4), max_running=max_running, max_batch_tokens=max_batch_tokens)


def run_step(subject: Scheduler) -> dict[str, int]:
    """Advance everything that is scheduled, as the engine does; tokens by request."""
    tokens = {}
    for item in subject.schedule():
        tokens[item.sequence.request_id] = item.num_tokens
        ends = item.reaches_end
        subject.advance(item)
        if ends:
            item.sequence.token_ids.append(0)
            if len(item.sequence.token_ids) >= item.sequence.max_total_tokens:
                subject.remove(item.sequence)
    return tokens


def run_to_the_end(subject: Scheduler) -> list[dict[str, int]]:
    steps = []
    while subject.has_work:
        steps.append(run_step(subject))
        subject.pool.check_integrity()
        assert steps[-1]
    assert subject.pool.num_free == subject.pool.num_blocks
    return steps


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


def test_a_request_is_admitted_on_what_it_needs_now() -> None:
    subject = scheduler(blocks=4)
    subject.add(sequence(4, 12, name="first"))
    subject.add(sequence(4, 8, name="second"))
    assert run_step(subject) == {"first": 4, "second": 4}
    assert subject.pool.num_free == 2


def test_a_request_waits_until_those_that_run_can_still_grow() -> None:
    subject = scheduler(blocks=4)
    subject.add(sequence(8, 12, name="first"))
    subject.add(sequence(8, 12, name="second"))
    assert run_step(subject) == {"first": 8}
    assert (subject.num_waiting, subject.pool.num_free) == (1, 2)


def test_an_xlora_request_holds_twice_the_blocks() -> None:
    subject = scheduler()
    subject.add(sequence(4, 8, xlora=True))
    subject.schedule()
    assert subject.pool.num_free == 8 - 2
    run_step(subject)
    subject.schedule()
    assert subject.pool.num_free == 8 - 4


def test_requests_are_admitted_in_order_even_if_a_later_one_would_fit() -> None:
    subject = scheduler(blocks=4)
    subject.add(sequence(8, 12, name="first"))
    subject.add(sequence(8, 16, name="big"))
    subject.add(sequence(1, 2, name="small"))
    assert run_step(subject) == {"first": 8}
    assert subject.num_waiting == 2


def test_the_youngest_is_preempted_and_comes_back_before_those_that_wait() -> None:
    subject = scheduler(blocks=4, max_batch_tokens=16)
    first, second, third = (sequence(4, 16, name=name) for name in ("first", "second", "third"))
    for item in (first, second, third):
        subject.add(item)
    steps = [run_step(subject) for _ in range(6)]
    assert steps[0] == {"first": 4, "second": 4}
    assert steps[5] == {"first": 1}
    assert subject.counters.preemptions == 1
    assert (second.num_computed, second.blocks.ids) == (0, [])
    ends = run_to_the_end(subject)
    assert next(step for step in ends if "second" in step)["second"] == second.num_prompt_tokens + 5
    started = [name for step in ends for name in step]
    assert started.index("second") < started.index("third")


def test_a_second_request_skips_the_full_blocks_of_its_prefix_but_never_its_last_token() -> None:
    subject = scheduler()
    subject.add(sequence(8, 9, kind="base"))
    run_to_the_end(subject)
    again = sequence(8, 9, kind="base")
    subject.add(again)
    assert run_to_the_end(subject) == [{"r": 4}]
    assert again.num_cached_prompt_tokens == 4
    longer = sequence(10, 11, kind="base")
    subject.add(longer)
    assert run_to_the_end(subject) == [{"r": 2}]
    assert (subject.counters.prompt_tokens, subject.counters.cached_prompt_tokens) == (26, 12)


def test_blocks_of_another_identity_and_unshared_ones_are_not_found() -> None:
    subject = scheduler()
    for kind in ("lora", None, "base", None):
        subject.add(sequence(9, 10, kind=kind))
        assert run_to_the_end(subject) == [{"r": 8}, {"r": 1}]


def test_two_requests_hold_a_shared_block_at_once() -> None:
    subject = scheduler(max_batch_tokens=16)
    subject.add(sequence(9, 14, kind="base", name="first"))
    run_step(subject)
    free = subject.pool.num_free
    subject.add(sequence(9, 14, kind="base", name="second"))
    assert run_step(subject) == {"first": 1, "second": 1}
    assert subject.pool.num_free == free - 1
    run_to_the_end(subject)


def test_a_request_that_reports_positions_computes_them_all_once() -> None:
    subject = scheduler(blocks=16, max_batch_tokens=32)
    subject.add(sequence(9, 12, kind="base"))
    run_to_the_end(subject)
    reports = sequence(9, 12, kind="base", reports=True)
    subject.add(reports)
    assert run_step(subject) == {"r": 9}
    subject._preempt(reports)  # what was reported is not needed again
    assert run_step(subject) == {"r": 2}
    run_to_the_end(subject)


def test_the_real_pass_of_an_xlora_starts_no_later_than_its_scaling_pass() -> None:
    subject = scheduler(blocks=32, max_batch_tokens=32)
    base = sequence(9, 10, kind="base")
    subject.add(base)
    run_to_the_end(subject)
    # Nothing of the real pass is known yet, but the scaling pass is that of the base model.
    first = sequence(13, 14, xlora=True, kind="x")
    subject.add(first)
    subject.schedule()
    assert (first.num_computed, first.num_scaling_computed) == (0, 8)
    run_to_the_end(subject)
    second = sequence(13, 14, xlora=True, kind="x")
    subject.add(second)
    subject.schedule()
    assert (second.num_computed, second.num_scaling_computed) == (12, 12)
    run_to_the_end(subject)
    # Only four positions of the scaling pass are left: the real pass has to begin there, though it knows twelve.
    pool = subject.pool
    held = pool.take(pool.num_free - pool.num_published)
    keep = BlockTable("x").find_shared(pool, range(13), 13) + BlockTable("base").find_shared(pool, range(13), 4)
    pool.hold(keep)
    held += pool.take(pool.num_free)
    pool.give_back(keep)
    pool.give_back(held)
    third = sequence(13, 14, xlora=True, kind="x")
    subject.add(third)
    subject.schedule()
    assert (third.num_computed, third.num_scaling_computed) == (4, 4)
    run_to_the_end(subject)


def test_a_frozen_request_gives_its_scaling_blocks_back_and_shares_nothing_that_follows() -> None:
    subject = scheduler(blocks=16, max_batch_tokens=16)
    frozen = sequence(6, 20, xlora=True, kind="x")
    subject.add(frozen)
    run_step(subject)
    free = subject.pool.num_free
    subject.release_scaling_blocks(frozen)
    assert subject.pool.num_free == free + 2
    for _ in range(8):
        run_step(subject)
    assert frozen.scaling_blocks.ids == []
    assert len(BlockTable("x").find_shared(subject.pool, frozen.token_ids, 12)) == 1
    # Computed anew: the scaling pass up to where it ended, in a step of its own, then the rest without it.
    subject._preempt(frozen)
    assert run_step(subject) == {"r": 2}
    assert frozen.scaling_blocks.ids == []
    assert run_step(subject) == {"r": len(frozen.token_ids) - 7}
    run_to_the_end(subject)


def test_where_prompts_are_separated_no_step_of_a_request_that_is_computed_anew_goes_beyond_its_prompt() -> None:
    for separates, expected in ((True, [{"r": 6}, {"r": 5}, {"r": 1}]), (False, [{"r": 11}, {"r": 1}])):
        subject = scheduler(blocks=16, max_batch_tokens=16)
        item = sequence(6, 20, separates=separates)
        subject.add(item)
        for _ in range(5):
            run_step(subject)
        subject._preempt(item)
        assert [run_step(subject) for _ in expected] == expected
        run_to_the_end(subject)


def test_a_frozen_request_is_computed_anew_in_parts_that_end_with_its_prompt_and_with_its_scaling_pass() -> None:
    subject = scheduler(blocks=16, max_batch_tokens=16)
    frozen = sequence(6, 20, xlora=True, separates=True)
    subject.add(frozen)
    for _ in range(3):
        run_step(subject)
    subject.release_scaling_blocks(frozen)
    for _ in range(4):
        run_step(subject)
    subject._preempt(frozen)
    assert [run_step(subject) for _ in range(3)] == [{"r": 6}, {"r": 2}, {"r": 5}]
    run_to_the_end(subject)


def test_where_prompts_are_separated_only_what_is_of_prompts_is_shared_and_only_with_prompts() -> None:
    for separates, num_shared, num_recomputed in ((True, 4, 4), (False, 12, 16)):
        subject = scheduler(blocks=40, max_batch_tokens=32)
        first = sequence(6, 30, kind="base", separates=separates)
        subject.add(first)
        for _ in range(8):
            run_step(subject)
        # A prompt of all that the first has and will have: what its answer was computed into is not a prompt's.
        second = sequence(20, 40, name="second", kind="base", separates=separates)
        second.token_ids[6:] = [0] * 14
        subject.add(second)
        run_step(subject)
        assert second.num_cached_prompt_tokens == num_shared
        # And what that was computed into as a prompt is of no use to the first, which has generated it.
        for _ in range(5):
            run_step(subject)
        subject._preempt(second)
        subject._preempt(first)
        subject.schedule()
        assert first.num_computed == num_recomputed
        for item in (first, second):
            subject.remove(item)


def test_a_request_that_outgrows_its_rotary_positions_is_computed_anew_in_its_place() -> None:
    subject = scheduler(blocks=12, max_batch_tokens=16)
    subject.add(sequence(6, 12, name="growing", kind="base", switch=8))
    subject.add(sequence(4, 14, name="younger"))
    steps = [run_step(subject) for _ in range(5)]
    assert [step["growing"] for step in steps] == [6, 1, 1, 9, 1]
    assert [step["younger"] for step in steps] == [4, 1, 1, 1, 1]
    run_to_the_end(subject)
    assert subject.counters.preemptions == 0


def test_short_and_long_requests_share_nothing() -> None:
    subject = scheduler(blocks=24, max_batch_tokens=32)
    short, long = sequence(9, 10, name="short", kind="base", switch=9), sequence(12, 13, kind="base", switch=9)
    again, longer = sequence(9, 10, kind="base", switch=9), sequence(14, 15, kind="base", switch=9)
    for item in (short, long, again, longer):
        subject.add(item)
        run_to_the_end(subject)
    assert (short.rotary_offset, long.rotary_offset) == (0, 9)
    assert [item.num_cached_prompt_tokens for item in (short, long, again, longer)] == [0, 0, 8, 12]


def test_the_youngest_makes_room_for_an_older_one_that_is_computed_anew() -> None:
    # The first holds a shared block, which releasing it does not free: it needs more than it gave back.
    subject = scheduler(blocks=8, max_batch_tokens=32)
    first, second = (sequence(7, 12, name=name, kind="base", switch=8) for name in ("first", "second"))
    subject.add(first)
    run_step(subject)
    subject.add(second)
    while not first.has_switched:
        run_step(subject)
        subject.pool.check_integrity()
    assert subject._running[0] is first
    run_to_the_end(subject)
    assert second.has_switched


def rows_by_pass(scheduled: list[ScheduledSequence]) -> tuple[int, int]:
    """Rows of the first and of the second pass of a step."""
    waiting = [item for item in scheduled if item.sequence.needs_scaling_pass and not item.sequence.is_frozen]
    others = [item for item in scheduled if item not in waiting]
    first = sum(item.num_tokens for item in others) + sum(item.num_scaling_tokens for item in waiting)
    return first, sum(item.num_tokens for item in waiting)


def test_skipped_positions_of_a_scaling_pass_count_in_the_budget() -> None:
    subject = scheduler(blocks=32, max_batch_tokens=8)
    subject.add(sequence(2, 12, xlora=True, granularity=RecomputedEvery(5)))
    subject.add(sequence(30, 31, name="long"))
    assert [run_step(subject) for _ in range(7)] == [
        {"r": 2, "long": 6},
        {"r": 1, "long": 7},
        {"r": 1, "long": 7},
        {"r": 1, "long": 7},
        {"r": 1, "long": 3},
        {"r": 1},  # with four rows of the scaling pass for the positions between
        {"r": 1},
    ]


def test_what_a_scaling_pass_cannot_catch_up_at_once_it_does_over_several_steps_beside_the_others() -> None:
    subject = scheduler(blocks=32, max_running=2, max_batch_tokens=4)
    subject.add(sequence(2, 30, xlora=True, granularity=RecomputedEvery(10)))
    subject.add(sequence(1, 30, name="other"))
    for _ in range(10):
        run_step(subject)
    passes = []
    for _ in range(5):
        scheduled = subject.schedule()
        passes.append({item.sequence.request_id: (item.num_tokens, item.num_scaling_tokens) for item in scheduled})
        for item in scheduled:
            subject.advance(item)
            if item.num_tokens:
                item.sequence.token_ids.append(0)
    assert passes == [
        {"r": (0, 3), "other": (1, 0)},
        {"r": (0, 3), "other": (1, 0)},
        {"r": (0, 3), "other": (1, 0)},
        {"r": (1, 1), "other": (1, 0)},
        {"r": (1, 0), "other": (1, 0)},
    ]


@dataclass(frozen=True)
class Arrival:
    """A request of the property test."""

    prompt: int
    new: int
    xlora: bool
    kind: str
    start: int
    freezes_after: int | None
    switch: int | None
    every: int
    separates: bool


ARRIVALS = st.builds(
    Arrival,
    st.integers(1, 20),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from(["base", "x", "y"]),
    st.integers(0, 12),
    st.none() | st.integers(1, 6),
    st.none() | st.integers(1, 30),
    st.sampled_from([1, 1, 2, 3, 11]),
    st.booleans(),
)


@given(st.lists(ARRIVALS, min_size=1, max_size=12), st.sampled_from([16, 17, 40]), st.sampled_from([4, 5, 8]))
def test_every_request_ends_in_order_within_budget_and_every_block_comes_back(
    requests: list[Arrival], blocks: int, budget: int
) -> None:
    subject = scheduler(blocks=blocks, max_batch_tokens=budget)
    order = sorted(requests, key=lambda item: item.start)
    sequences = [
        sequence(
            r.prompt,
            r.prompt + r.new,
            xlora=r.xlora,
            name=str(i),
            kind=r.kind,
            switch=r.switch,
            # What is recomputed is never frozen: a request says one or the other.
            granularity=RecomputedEvery(r.every) if r.freezes_after is None else EVERY_TOKEN,
            separates=r.separates,
        )
        for i, r in enumerate(order)
    ]
    arrived = step = 0
    while arrived < len(order) or subject.has_work:
        while arrived < len(order) and order[arrived].start <= step:
            subject.add(sequences[arrived])
            arrived += 1
        oldest = subject._running[0] if subject._running else None
        scheduled = subject.schedule()
        subject.pool.check_integrity()
        assert max(rows_by_pass(scheduled)) <= budget
        assert all(item.num_rows > 0 for item in scheduled)
        assert {s for s in subject._running if s.is_decoding} <= {item.sequence for item in scheduled}
        assert scheduled or not subject.has_work
        if oldest is not None:
            assert subject._running[0] is oldest
            assert any(item.sequence is oldest for item in scheduled)
        for item in scheduled:
            is_long = item.sequence.switch_length is not None and (
                len(item.sequence.token_ids) > item.sequence.switch_length
            )
            assert item.sequence.has_switched is is_long
            if item.sequence.separates_prompts and item.is_of_prompt:
                assert item.positions.stop <= item.sequence.num_prompt_tokens
        # Whoever came earlier is served no later; those that were preempted come back to their old place.
        ages = [int(item.request_id) for item in (*subject._running, *subject._waiting)]
        assert ages == sorted(ages)
        # What is written is held by nobody else.
        written = [
            block
            for item in scheduled
            for table, rows in (
                (item.sequence.blocks, item.positions),
                (item.sequence.scaling_blocks, item.scaling_positions),
            )
            for block in (table.ids[rows.start // 4 : -(-rows.stop // 4)] if rows else ())
        ]
        assert len(set(written)) == len(written)
        assert all(subject.pool._holders[block] == 1 for block in written)
        for item in scheduled:
            running = item.sequence
            ends = item.reaches_end
            if running.needs_scaling_pass and not running.is_frozen:
                seen = running.num_scaling_computed + item.num_scaling_tokens
                assert all(running.scaling_source(position) < seen for position in item.positions)
            subject.advance(item)
            if not ends:
                continue
            running.token_ids.append(0)
            freezes_after = order[int(running.request_id)].freezes_after
            if running.needs_scaling_pass and running.num_generated == freezes_after and running.frozen_from is None:
                subject.release_scaling_blocks(running)
            if len(running.token_ids) >= running.max_total_tokens:
                subject.remove(running)
        subject.pool.check_integrity()
        step += 1
        assert step < 2000
    assert all(len(item.token_ids) == item.max_total_tokens for item in sequences)
    assert subject.pool.num_free == subject.pool.num_blocks


def drafting(subject: Scheduler) -> Scheduler:
    """Every draft is checked: rows cost nothing on this machine."""
    subject._speculation = Speculation(subject.pace, 3)
    for num_rows in range(1, 20):
        subject.pace.note(num_rows, 0, 1.0)
    return subject


def repeating(prompt: int, total: int, *, name: str = "r", xlora: bool = False, switch: int | None = None) -> Sequence:
    """Its tokens are 0, 1, 0, 1 and so on."""
    item = sequence(prompt, total, name=name, xlora=xlora, switch=switch)
    item.token_ids[:] = [index % 2 for index in range(prompt)]
    return item


def first_token(subject: Scheduler, item: Sequence) -> None:
    """Through the prompt of an only sequence."""
    subject.add(item)
    while not item.num_generated:
        (scheduled,) = subject.schedule()
        ends = scheduled.reaches_end
        subject.advance(scheduled)
        if ends:
            item.token_ids.append(len(item.token_ids) % 2)


def test_tokens_of_a_draft_run_behind_the_newest_token_and_have_blocks() -> None:
    subject, item = drafting(scheduler()), repeating(6, 20)
    first_token(subject, item)
    (scheduled,) = subject.schedule()
    assert (scheduled.positions, scheduled.num_drafted, scheduled.reaches_end) == (range(6, 10), 3, True)
    assert scheduled.token_ids(scheduled.positions) == [0, 1, 0, 1]
    assert len(item.blocks.ids) == 3


@pytest.mark.parametrize("num_wrong", [0, 1, 3])
@pytest.mark.parametrize("xlora", [False, True])
def test_what_did_not_come_true_counts_as_never_computed(num_wrong: int, xlora: bool) -> None:
    subject, item = drafting(scheduler()), repeating(6, 20, xlora=xlora)
    first_token(subject, item)
    (scheduled,) = subject.schedule()
    item.token_ids += [*[1, 0, 1][: 3 - num_wrong], 7]
    subject.advance(scheduled, num_wrong)
    assert (item.num_computed, item.num_pending) == (10 - num_wrong, 1)
    assert item.num_scaling_computed == (item.num_computed if xlora else 0)
    assert (subject.counters.drafted_tokens, subject.counters.accepted_tokens) == (3, 3 - num_wrong)
    subject.remove(item)
    assert subject.pool.num_free == subject.pool.num_blocks


def test_the_last_token_of_an_answer_is_never_drafted() -> None:
    subject, item = drafting(scheduler()), repeating(6, 9)  # three new ones, of which one is there
    first_token(subject, item)
    (scheduled,) = subject.schedule()
    assert scheduled.num_drafted == 1


def test_drafts_stay_within_the_budget_and_leave_a_row_for_prompts() -> None:
    subject = drafting(scheduler(blocks=32, max_batch_tokens=6))
    items = [repeating(4, 20, name=name) for name in "ab"]
    for item in items:
        subject.add(item)
    while any(item.num_generated == 0 for item in items):
        run_step(subject)
    subject.add(sequence(8, 12, name="c"))
    scheduled = subject.schedule()
    assert sum(item.num_rows for item in scheduled) == 6
    assert [item.sequence.request_id for item in scheduled] == ["a", "b", "c"]
    assert scheduled[2].num_tokens == 1


def test_a_draft_takes_no_block_that_others_may_need() -> None:
    subject = drafting(scheduler(blocks=6))
    items = [repeating(7, 12, name=name) for name in "ab"]
    for item in items:
        subject.add(item)
    run_step(subject)
    run_step(subject)
    for item in items:
        item.token_ids[-1] = 1  # as before
    assert [item.num_drafted for item in subject.schedule()] == [0, 0]  # the next block of each is all there is
    assert subject.pool.num_free == 2


def test_no_draft_reaches_beyond_where_rotary_positions_change() -> None:
    subject, item = drafting(scheduler()), repeating(6, 20, switch=8)
    first_token(subject, item)
    (scheduled,) = subject.schedule()
    assert scheduled.num_drafted == 1
    assert not item.must_switch


@pytest.mark.parametrize("granularity", [FrozenAfter(3), RecomputedEvery(2), FrozenWhenSettled(0.1, 2)])
def test_scalings_that_may_freeze_or_are_skipped_are_not_drafted(granularity: Granularity) -> None:
    subject = drafting(scheduler())
    item = sequence(6, 20, xlora=True, granularity=granularity)
    item.token_ids[:] = [0, 1] * 3
    first_token(subject, item)
    (scheduled,) = subject.schedule()
    assert scheduled.num_drafted == 0
    if isinstance(granularity, FrozenAfter):
        subject.advance(scheduled)
        item.token_ids.append(1)
        subject.release_scaling_blocks(item)
        (scheduled,) = subject.schedule()
        assert scheduled.num_drafted == 3
