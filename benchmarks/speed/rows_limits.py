"""The rows with bounds of their own: waiting times, start, memory."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from benchmarks.speed.bench import Bench
from benchmarks.speed.comparison import Limit, Outcome
from benchmarks.speed.loramux_server import Answer, LoramuxServer, request_for
from benchmarks.speed.workload import Stream

SETTLED_TOKENS = 20  # of every stream, before anything is measured
CROWD_TOKENS = 512  # of an answer of the crowd: all of them and a long prompt find room in the cache together
LATECOMERS = 5
LONG_PROMPTS = 3


def latency(bench: Bench) -> Iterator[Outcome]:
    """Time to first token beside decoding streams, and their gaps while long prompts arrive, in decode steps."""
    server, profile = bench.loramux(), bench.profile
    waits, gaps = [], []
    for _ in range(bench.rounds):
        crowd = [Stream(bench.prompts.next(profile.prompt_tokens), CROWD_TOKENS) for _ in range(profile.streams - 1)]
        short = [Stream(bench.prompts.next(profile.short_prompt_tokens), 2) for _ in range(LATECOMERS)]
        long = [Stream(bench.prompts.next(profile.long_prompt_tokens), 2) for _ in range(LONG_PROMPTS)]
        wait, gap = server.in_loop(partial(_disturbed, crowd=crowd, short=short, long=long))
        waits.append(wait)
        gaps.append(gap)
    others = f"{profile.streams - 1} streams decode"
    yield Limit(f"first token of a short prompt while {others}", 3.0, tuple(waits), "decode steps")
    yield Limit(
        f"longest gap of a stream while {profile.long_prompt_tokens}-token prompts arrive and {others}",
        5.0,
        tuple(gaps),
        "decode steps",
    )


async def _disturbed(
    server: LoramuxServer, crowd: Sequence[Stream], short: Sequence[Stream], long: Sequence[Stream]
) -> tuple[float, float]:
    """The median wait of the short prompts and the longest gap of the crowd under the long ones, in decode steps."""
    answers: list[list[Answer]] = [[] for _ in crowd]
    running = [asyncio.create_task(_keep_busy(server, stream, its)) for stream, its in zip(crowd, answers, strict=True)]
    try:
        while any(not its or len(its[0].arrivals) < SETTLED_TOKENS for its in answers):
            await asyncio.sleep(0.01)
            _check_all_run(running)
        step = await _seconds_a_step(server)
        waits = []
        for stream in short:
            latecomer = Answer(stream)
            asked = time.perf_counter()
            await server.collect(latecomer, request_for(stream))
            waits.append(latecomer.token_times()[0] - asked)
            await asyncio.sleep(0.1)
        began = time.perf_counter()
        for stream in long:
            await server.collect(Answer(stream), request_for(stream))
        _check_all_run(running)
        longest = max(gap for its in answers for gap in _gaps(its, began, time.perf_counter()))
        return statistics.median(waits) / step, longest / step
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _keep_busy(server: LoramuxServer, stream: Stream, answers: list[Answer]) -> None:
    """Ask for a stream again whenever it has ended: repetitive text can come faster than the long prompts."""
    while True:
        answers.append(Answer(stream))
        await server.collect(answers[-1], request_for(stream))


def _check_all_run(running: Sequence[asyncio.Task[None]]) -> None:
    if any(task.done() for task in running):
        raise RuntimeError("a stream of the crowd has failed: nothing was measured")


async def _seconds_a_step(server: LoramuxServer) -> float:
    """By the server's count: a step may bring several tokens, and a message those of several steps."""
    began, steps = time.perf_counter(), await asyncio.to_thread(server.num_steps)
    await asyncio.sleep(1.5)
    steps = await asyncio.to_thread(server.num_steps) - steps
    return (time.perf_counter() - began) / steps


def _gaps(answers: Sequence[Answer], began: float, ended: float) -> list[float]:
    """Seconds between messages, of gaps that end in this time; of the last answer, which goes on, beyond it too."""
    gaps: list[float] = []
    for number, answer in enumerate(answers, start=1):
        moments = [moment for moment, _ in answer.arrivals[1:] if moment < ended]  # the first brings no token
        if number == len(answers):
            moments.append(ended)
        gaps += [later - earlier for earlier, later in pairwise(moments) if later >= began]
    return gaps


def start(bench: Bench) -> Iterator[Outcome]:
    """From the start of the process until it takes requests; the model's file is cached by then."""
    for name, model in (("served model", bench.inputs.model), ("1.1B Q4_K", bench.inputs.large_model)):
        _read(model)
        seconds = tuple(
            _started_once(bench, model, lambda server: server.seconds_to_ready) for _ in range(bench.rounds)
        )
        yield Limit(f"start to ready, {name}", 5.0, seconds, "s")


def memory(bench: Bench) -> Iterator[Outcome]:
    """Resident memory after loading, without that of torch and with hardly a cache, over the size of the file."""
    model = bench.inputs.large_model

    def over_file(server: LoramuxServer) -> float:
        return (server.resident_bytes() - _empty_process_bytes()) / model.stat().st_size

    small_cache = ("--kv-cache-tokens", "64")
    values = tuple(_started_once(bench, model, over_file, *small_cache) for _ in range(bench.rounds))
    yield Limit("memory after load, 1.1B Q4_K", 2.0, values, "x file size")


def _started_once(bench: Bench, model: Path, figure: Callable[[LoramuxServer], float], *flags: str) -> float:
    server = bench.start_loramux("started-once", *flags, model=model)
    try:
        return figure(server)
    finally:
        server.close()


def _read(path: Path) -> None:
    """Into the file cache."""
    with path.open("rb") as file:
        while file.read(2**24):
            pass


def _empty_process_bytes() -> int:
    """Resident memory of a process that has only imported what the server imports of others."""
    code = "import torch, grpc, psutil; print(psutil.Process().memory_info().rss)"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
