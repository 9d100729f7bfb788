"""The rows that compare with peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from benchmarks.speed.bench import Bench
from benchmarks.speed.comparison import Comparison, Measure, Outcome, alternate
from benchmarks.speed.workload import BASE, Choice, Contender, Run, Stream

LORA, XLORA = Choice("lora"), Choice("xlora")

Streams = Callable[[], Sequence[Stream]]
Figure = Callable[[Run], float]
Rivals = Sequence[tuple[Contender | None, float]]  # with the target; None: not asked for


def decode_base(bench: Bench) -> Iterator[Outcome]:
    """Decode, 1 stream, base."""
    yield from against(bench, "decode, 1 stream, base", lambda: bench.single(BASE), decode, [(bench.llama_cpp(), 1.75)])


def decode_lora(bench: Bench) -> Iterator[Outcome]:
    """Decode, 1 stream, 1 LoRA."""
    rivals = [(bench.llama_cpp(), 1.75)]
    yield from against(bench, "decode, 1 stream, 1 LoRA", lambda: bench.single(LORA), decode, rivals)


def prefill(bench: Bench) -> Iterator[Outcome]:
    """Prompt tokens a second until the first token."""
    yield from against(bench, "prefill", lambda: bench.single(BASE), prompt, [(bench.llama_cpp(), 4.0)])


def crowd_base(bench: Bench) -> Iterator[Outcome]:
    """Many streams, base, end to end."""
    count = bench.profile.streams
    rivals: Rivals = [(bench.llama_cpp(), 5.0), (bench.vllm(), 2.2)]
    yield from against(
        bench, f"{count} streams, base, end to end", lambda: bench.streams([BASE] * count), total, rivals
    )


def crowd_loras(bench: Bench) -> Iterator[Outcome]:
    """Many streams, each with another LoRA, end to end."""
    count = bench.profile.streams
    rivals: Rivals = [(bench.llama_cpp(), 8.0), (bench.vllm(), 12.0)]
    yield from against(
        bench, f"{count} streams, {count} LoRAs, end to end", lambda: bench.streams(bench.lora_choices), total, rivals
    )


def decode_xlora(bench: Bench) -> Iterator[Outcome]:
    """X-LoRA, every token with scalings of its own: decode against mistral.rs, end to end against PEFT."""
    work = f"1 stream, X-LoRA of {bench.profile.experts}"

    def streams() -> Sequence[Stream]:
        return bench.single(XLORA)

    yield from against(bench, f"decode, {work}", streams, decode, [(bench.mistralrs(), 6.0)])
    # PEFT computes the whole text anew for every token, so only the whole can be compared.
    yield from against(bench, f"{work}, end to end", streams, total, [(bench.peft_xlora(), 60.0)])


def large_model(bench: Bench) -> Iterator[Outcome]:
    """A model of 1.1 billion random weights."""
    rival = bench.large_llama_cpp()
    if rival is None:
        return
    ours = bench.large_loramux()
    for work, figure, target in (("decode", decode, 1.0), ("prefill", prompt, 1.5)):
        yield from against(bench, f"{work}, 1.1B Q4_K", bench.single, figure, [(rival, target)], ours)


def against(
    bench: Bench, work: str, streams: Streams, figure: Figure, rivals: Rivals, ours: Contender | None = None
) -> Iterator[Comparison]:
    """Ours against every rival that takes part."""
    present = [(rival, target) for rival, target in rivals if rival is not None]
    if not present:
        return
    measures = [measure(rival, streams, figure) for rival, _ in present]
    own, *others = alternate(bench.rounds, measure(ours or bench.loramux(), streams, figure), *measures)
    for (rival, target), values in zip(present, others, strict=True):
        yield Comparison(work, rival.name, target, own, values)


def measure(contender: Contender, streams: Streams, figure: Figure) -> Measure:
    """One figure of one run."""
    return lambda: figure(contender.run(streams()))


def decode(run: Run) -> float:
    """Of a single stream, without its prompt."""
    return run.timings[0].decode_rate


def prompt(run: Run) -> float:
    """Prompt tokens a second."""
    return run.timings[0].prefill_rate


def total(run: Run) -> float:
    """All new tokens, prompts included in the time."""
    return run.total_rate
