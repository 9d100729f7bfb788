"""The rows that compare Loramux with itself: what mixtures, crowds and resident adapters cost."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.speed.bench import RESIDENT, RESIDENT_RANK, Bench
from benchmarks.speed.comparison import Comparison, Measure, Outcome, alternate
from benchmarks.speed.rows_peers import LORA, XLORA, decode, measure, prompt, total
from benchmarks.speed.workload import BASE, Choice

FROZEN = Choice("frozen xlora")


def frozen_xlora(bench: Bench) -> Iterator[Outcome]:
    """X-LoRA whose scalings are frozen after the prompt, against one LoRA."""
    server = bench.loramux()
    frozen = measure(server, lambda: bench.single(FROZEN), decode)
    lora = measure(server, lambda: bench.single(LORA), decode)
    yield _against_itself(bench, "decode, 1 stream, X-LoRA frozen", "1 LoRA", 0.9, frozen, lora)


def crowd_xlora(bench: Bench) -> Iterator[Outcome]:
    """Eight X-LoRA streams against one."""
    server = bench.loramux()
    eight = measure(server, lambda: bench.streams([XLORA] * 8), total)
    one = measure(server, lambda: bench.streams([XLORA]), total)
    yield _against_itself(bench, "8 X-LoRA streams, end to end", "1 X-LoRA stream", 3.0, eight, one)


def mixed_crowd(bench: Bench) -> Iterator[Outcome]:
    """Base, LoRA, weighted pairs and X-LoRA in equal parts, against a LoRA each."""
    server = bench.loramux()
    count = bench.profile.streams
    kinds = (Choice("base"), Choice("lora"), Choice("pair"), Choice("xlora"))
    choices = [Choice(kinds[index % 4].kind, index - index % 2) for index in range(count)]
    mixed = measure(server, lambda: bench.streams(choices), total)
    loras = measure(server, lambda: bench.streams(bench.lora_choices), total)
    yield _against_itself(
        bench, f"{count} mixed streams, end to end", f"{count} streams, {count} LoRAs", 0.7, mixed, loras
    )


def unused_adapters(bench: Bench) -> Iterator[Outcome]:
    """Adapters that are loaded and not used, against none loaded."""
    count = bench.profile.streams
    for work, streams, figure in (
        ("decode, 1 stream, base", lambda: bench.single(BASE), decode),
        (f"{count} streams, base, end to end", lambda: bench.streams([BASE] * count), total),
    ):
        loaded, bare = (measure(server, streams, figure) for server in (bench.loramux(), bench.bare_loramux()))
        yield _against_itself(bench, f"{work}, adapters loaded", "no adapters loaded", 0.98, loaded, bare)


def resident_adapters(bench: Bench) -> Iterator[Outcome]:
    """Hundreds of resident adapters, few of them in use, against only these resident."""
    count = bench.profile.streams
    many, few = (
        measure(bench.crowded_loramux(resident), lambda: bench.streams(bench.lora_choices), total)
        for resident in (RESIDENT, count)
    )
    work = f"{RESIDENT} resident rank-{RESIDENT_RANK} adapters, {count} in use"
    yield _against_itself(bench, work, f"{count} resident", 0.95, many, few)


def batch_invariant(bench: Bench) -> Iterator[Outcome]:
    """What the batch-invariant mode costs."""
    count = bench.profile.streams
    for work, streams, figure in (
        ("decode, 1 stream, base", lambda: bench.single(BASE), decode),
        ("prefill", lambda: bench.single(BASE), prompt),
        (f"{count} streams, {count} LoRAs, end to end", lambda: bench.streams(bench.lora_choices), total),
    ):
        exact, fast = (measure(server, streams, figure) for server in (bench.invariant_loramux(), bench.loramux()))
        yield _against_itself(bench, f"{work}, batch-invariant", "fast mode", 0.7, exact, fast)


def _against_itself(bench: Bench, work: str, baseline: str, target: float, ours: Measure, other: Measure) -> Comparison:
    own, others = alternate(bench.rounds, ours, other)
    return Comparison(work, f"ours: {baseline}", target, own, others)
