"""How the cost of a decode step grows: `python -m benchmarks.curves` (`make bench-curves`).

With the number of streams, the context, the rank of adapters, how many are resident, and how many an X-LoRA mixes; the
shape that the arithmetic expects beside the shape measured. Pictures and the figures they show go to benchmarks/plots.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

from benchmarks.curves.arithmetic import Arithmetic
from benchmarks.curves.curve import Curve, draw, measure_series
from benchmarks.curves.probe import Probe
from benchmarks.inputs.adapters import expert_names
from benchmarks.inputs.files import Inputs
from benchmarks.speed.machine import this_machine, watching_others
from inference_svc.adapters.selection import BaseSelection, LoraSelection, Selection, XLoraSelection
from inference_svc.engine.request import XLoraOptions
from inference_svc.scheduling.granularity import FrozenAfter

PLOTS = Path(__file__).parents[1] / "plots"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
RANKS = (4, 8, 16, 32, 64, 128)
RESIDENT = (1, 4, 16, 64, 256, 1000)
EXPERTS = (2, 4, 8, 16)
CONTEXT = 128  # where it is not varied
STEPS = 24
PROMPT_TOKENS = 512
BASE = BaseSelection()


class Curves:
    """Measures curves on one engine after the other."""

    def __init__(self, inputs: Inputs, kernels: str, rounds: int) -> None:
        self._inputs = inputs
        self._rounds = rounds
        self._probe = Probe(inputs.model, kernels)
        prompts = [self._probe.prefill_seconds(BASE, PROMPT_TOKENS) for _ in range(2 * rounds + 1)]
        steps = [self._probe.step_seconds([BASE], CONTEXT, STEPS) for _ in range(2 * rounds + 1)]
        middle = rounds
        self.arithmetic = Arithmetic.measured(
            self._probe.base, sorted(steps)[middle], CONTEXT, (PROMPT_TOKENS, sorted(prompts)[middle])
        )

    def close(self) -> None:
        """End the engine."""
        self._probe.close()

    def batch(self) -> Curve:
        """Streams that decode together: on the base, and each with a LoRA of its own."""
        rank, names = 16, self._loras(16, max(BATCHES))
        series = (
            measure_series(
                "base",
                BATCHES,
                lambda rows: self._step([BASE] * rows),
                lambda rows: self._expected(rows, CONTEXT),
                self._rounds,
            ),
            measure_series(
                f"each a LoRA of rank {rank}",
                BATCHES,
                lambda rows: self._step([_lora(name) for name in names[:rows]]),
                lambda rows: self._expected(rows, CONTEXT, ranks_read=rank * rows, ranks_computed=rank * rows),
                self._rounds,
            ),
        )
        return Curve("batch", f"Streams that decode together, {CONTEXT} tokens in", "streams", series)

    def context(self) -> Curve:
        """Tokens before the one that is computed."""
        series = tuple(
            measure_series(
                f"{rows} stream{'s' if rows > 1 else ''}",
                CONTEXTS,
                lambda context, rows=rows: self._step([BASE] * rows, context),  # type: ignore[misc]
                lambda context, rows=rows: self._expected(rows, context),  # type: ignore[misc]
                self._rounds,
            )
            for rows in (1, 8)
        )
        return Curve("context", "Context", "tokens before the new one", series)

    def rank(self) -> Curve:
        """Rank of the adapters in use."""
        names = {rank: self._loras(rank, 16) for rank in RANKS}
        series = tuple(
            measure_series(
                f"{rows} stream{'s' if rows > 1 else ''}, {rows} LoRA{'s' if rows > 1 else ''}",
                RANKS,
                lambda rank, rows=rows: self._step([_lora(name) for name in names[rank][:rows]]),  # type: ignore[misc]
                lambda rank, rows=rows: self._expected(  # type: ignore[misc]
                    rows, CONTEXT, ranks_read=rank * rows, ranks_computed=rank * rows
                ),
                self._rounds,
            )
            for rows in (1, 16)
        )
        return Curve("rank", "Rank of the LoRA adapters in use", "rank", series)

    def resident(self) -> Curve:
        """Adapters that are resident, the same few in use."""
        rank, rows = 4, 16
        names: list[str] = []

        def step(resident: int) -> float:
            # Adapters only become more, so each number of them is measured once, several times in a row.
            if len(names) < resident:
                names.extend(self._loras(rank, resident - len(names)))
            return self._step([_lora(names[0])] * rows)

        series = measure_series(
            f"{rows} streams, 1 LoRA of rank {rank} in use",
            RESIDENT,
            lambda resident: sorted(step(resident) for _ in range(self._rounds))[self._rounds // 2],
            lambda _: self._expected(rows, CONTEXT, ranks_read=rank, ranks_computed=rank * rows),
            1,
        )
        return Curve("resident", "Resident adapters", "resident adapters", (series,))

    def experts(self) -> Curve:
        """Adapters that an X-LoRA mixes: with scalings for every token, and frozen after the prompt."""
        rank = 8
        names = {count: self._mixture(rank, count) for count in EXPERTS}
        base_work = self.arithmetic.work(1, CONTEXT)

        def real_pass(count: int) -> float:
            return self._expected(1, CONTEXT, ranks_read=rank * count, ranks_computed=rank * count)

        frozen = XLoraOptions(granularity=FrozenAfter(0))
        series = (
            measure_series(
                "scalings for every token",
                EXPERTS,
                lambda count: self._step([XLoraSelection(names[count])]),
                lambda count: real_pass(count) + self.arithmetic.seconds(base_work),
                self._rounds,
            ),
            measure_series(
                "frozen after the prompt",
                EXPERTS,
                lambda count: self._step([XLoraSelection(names[count])], xlora=frozen),
                real_pass,
                self._rounds,
            ),
        )
        return Curve("xlora", f"Adapters of an X-LoRA, rank {rank} each, 1 stream", "adapters", series)

    def _step(self, selections: list[Selection], context: int = CONTEXT, xlora: XLoraOptions | None = None) -> float:
        return self._probe.step_seconds(selections, context, STEPS, xlora)

    def _expected(self, rows: int, context: int, *, ranks_read: int = 0, ranks_computed: int = 0) -> float:
        work = self.arithmetic.work(rows, context, ranks_read=ranks_read, ranks_computed=ranks_computed)
        return self.arithmetic.seconds(work)

    def _loras(self, rank: int, count: int) -> list[str]:
        return self._probe.load_loras(self._inputs.loras((rank,), 1)[0], count)

    def _mixture(self, rank: int, count: int) -> str:
        files = self._inputs.xlora(rank, count)
        layers = json.loads(files.xlora_ordering.read_text())["layers"]
        return self._probe.load_xlora(files.folder, expert_names(count), layers)[0]


def _lora(name: str) -> Selection:
    return LoraSelection({name: 1.0})


CURVES: Mapping[str, Callable[[Curves], Curve]] = MappingProxyType(
    {
        "batch": Curves.batch,
        "context": Curves.context,
        "rank": Curves.rank,
        "xlora": Curves.experts,
        "resident": Curves.resident,
    }
)


def measured(names: list[str], curves: Curves) -> Iterator[tuple[Curve, float]]:
    """Each curve, and the share of the processor that others used meanwhile."""
    for name in names:
        with watching_others() as others:
            curve = CURVES[name](curves)
        yield curve, others.value


def main() -> None:
    """Measure, draw, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curve", action="append", choices=CURVES, help="only this one; repeatable")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inputs", type=Path, default=Path("build/bench-inputs"))
    parser.add_argument("--output", type=Path, default=PLOTS)
    arguments = parser.parse_args()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    machine = asdict(this_machine())
    curves = Curves(Inputs(arguments.inputs), arguments.kernels, arguments.rounds)
    try:
        for curve, others_share in measured(arguments.curve or list(CURVES), curves):
            draw(curve, output / f"{curve.name}.png")
            figures = {
                "machine": machine,
                "others_share": round(others_share, 3),
                "arithmetic": asdict(curves.arithmetic),
                **asdict(curve),
            }
            (output / f"{curve.name}.json").write_text(json.dumps(figures, indent=1) + "\n")
            for series in curve.series:
                points = zip(series.x, series.medians, series.expected, strict=True)
                text = "  ".join(f"{x}: {1000 * got:.2f} ({1000 * want:.2f})" for x, got, want in points)
                sys.stdout.write(f"{curve.name}, {series.label}, ms (expected): {text}\n")
            sys.stdout.flush()
    finally:
        curves.close()


if __name__ == "__main__":
    main()
