"""Measures Loramux and its peers on the same work and prints one table of ratios: `make bench`.

Every contender is started once, with the same quantized model, adapters, prompts and lengths. Ours and the peer's runs
alternate, and ratios are medians over rounds, because a machine drifts. Results go to build/bench as JSON and Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import get_args

from rich.console import Console

from benchmarks.inputs.files import Inputs
from benchmarks.peers.installations import DEFAULT_FOLDER
from benchmarks.speed import rows_limits, rows_ours, rows_peers
from benchmarks.speed.bench import Bench, Drafts
from benchmarks.speed.comparison import Outcome
from benchmarks.speed.machine import this_machine, watching_others
from benchmarks.speed.profiles import PROFILES, Profile
from benchmarks.speed.table import Line, Report, cells, rich_table, write_files
from benchmarks.speed.workload import WrongAnswer

Row = Callable[[Bench], Iterator[Outcome]]
ROWS: Mapping[str, Row] = MappingProxyType(
    {
        "decode-base": rows_peers.decode_base,
        "decode-lora": rows_peers.decode_lora,
        "prefill": rows_peers.prefill,
        "crowd-base": rows_peers.crowd_base,
        "crowd-loras": rows_peers.crowd_loras,
        "decode-xlora": rows_peers.decode_xlora,
        "frozen-xlora": rows_ours.frozen_xlora,
        "crowd-xlora": rows_ours.crowd_xlora,
        "mixed-crowd": rows_ours.mixed_crowd,
        "unused-adapters": rows_ours.unused_adapters,
        "resident-adapters": rows_ours.resident_adapters,
        "batch-invariant": rows_ours.batch_invariant,
        "large-model": rows_peers.large_model,
        "latency": rows_limits.latency,
        "start": rows_limits.start,
        "memory": rows_limits.memory,
    }
)
PEERS = ("llama.cpp", "mistralrs", "vllm", "peft")


def main() -> None:
    """Measure the chosen rows; the exit status is 1 if one could not be measured."""
    arguments = _arguments()
    output: Path = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    machine = this_machine()
    console = Console(width=None if sys.stdout.isatty() else 160)
    lines: list[Line] = []
    failures: list[str] = []
    profile = _profile(arguments)
    inputs = Inputs(arguments.inputs)
    peers: Path = arguments.peers_folder.resolve()
    with Bench(profile, inputs, peers, arguments.peers, output, arguments.rounds, arguments.drafts) as bench:
        for name in arguments.row or ROWS:
            console.print(f"[dim]{name} ...[/]")
            try:
                with watching_others() as others:
                    outcomes = list(ROWS[name](bench))
            except (RuntimeError, WrongAnswer) as error:
                failures.append(f"{name}: {error}")
                continue
            found = [Line(outcome, others.value, others.is_worth_a_warning) for outcome in outcomes]
            for line in found:
                console.print("  ".join(cells(line)))
            lines += found
        failures += bench.problems
    name = profile.name if arguments.drafts == "ours" else f"{profile.name}-drafts-{arguments.drafts}"
    report = Report(machine, name, arguments.rounds, tuple(lines), tuple(failures))
    console.print(rich_table(report), *(f"[red]{failure}[/]" for failure in failures), sep="\n")
    for path in write_files(report, output):
        console.print(f"[dim]{path}[/]")
    if failures:
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", choices=ROWS, help="only this row; repeatable")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS, help="who is compared with")
    parser.add_argument("--peers-folder", type=Path, default=DEFAULT_FOLDER, help="where they are installed")
    parser.add_argument("--profile", choices=PROFILES, default="table", help="sizes of prompts, answers and adapters")
    parser.add_argument("--prompt-tokens", type=int, help="of every prompt, instead of the profile's")
    parser.add_argument("--new-tokens", type=int, help="of every answer, instead of the profile's")
    parser.add_argument("--streams", type=int, help="of a crowd, instead of the profile's")
    parser.add_argument(
        "--drafts",
        choices=get_args(Drafts),
        default="ours",
        help="who looks tokens up in the text: we do, as is our default; nobody; llama.cpp does so too",
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each pair is measured")
    parser.add_argument("--inputs", type=Path, default=Path("build/bench-inputs"), help="where inputs are kept")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), help="results and logs")
    return parser.parse_args()


def _profile(arguments: argparse.Namespace) -> Profile:
    profile = PROFILES[arguments.profile]
    changes: dict[str, object] = {}
    if arguments.prompt_tokens is not None:
        changes |= {"prompt_tokens": arguments.prompt_tokens, "crowd_prompt_tokens": (arguments.prompt_tokens,)}
    if arguments.new_tokens is not None:
        changes |= {"new_tokens": arguments.new_tokens, "crowd_new_tokens": (arguments.new_tokens,)}
    if arguments.streams is not None:
        changes["streams"] = arguments.streams
    return replace(profile, **changes, name=f"{profile.name}-changed") if changes else profile  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
