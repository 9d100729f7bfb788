"""`python -m inference_svc.distortion`: measures, and writes a JSON report. `loramux distortion` shows it."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

EXIT_CANNOT_MEASURE = 2
MAX_TOKENS = 256

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def distortion(
    reference: Annotated[str, typer.Argument(help="The model to compare with, which runs in float32.")],
    compared: Annotated[str | None, typer.Argument(help="The same model in another precision. [the reference]")] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the report. [stdout]")] = None,
    quantize: Annotated[str | None, typer.Option(help="Pack the compared model's floats: q8_0 or q4_k.")] = None,
    kernels: Annotated[str, typer.Option(help="What runs the compared model: as for the service.")] = "auto",
    prompts: Annotated[Path | None, typer.Option(help="Text with paragraphs, or *.jsonl. [built in]")] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Longer texts are cut.")] = MAX_TOKENS,
    ordering: Annotated[Path | None, typer.Option(help="Ordering file: measure with its adapters, too.")] = None,
    adapters: Annotated[str | None, typer.Option(help="Folder or hub id of the adapters.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Measure how far the compared model's answers are from the reference's."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing to put in order
    # torch takes seconds: not for --help or a wrong flag
    from inference_svc.distortion.adapters import ChosenAdapters
    from inference_svc.distortion.errors import DistortionError
    from inference_svc.distortion.measuring import Plan, Side, measure
    from inference_svc.distortion.prompts import built_in_prompts, read_prompts
    from inference_svc.errors import InferenceError
    from inference_svc.logs import configure_logs
    from inference_svc.tokenization.errors import TokenizationError
    from inference_svc.weights.errors import WeightsError
    from inference_svc.weights.in_situ import Scheme

    configure_logs("json")
    chosen = ChosenAdapters(ordering, adapters) if ordering is not None or adapters is not None else None
    try:
        schemes = {scheme.value: scheme for scheme in Scheme}
        if quantize is not None and quantize not in schemes:
            raise DistortionError(f"--quantize {quantize}: choose one of {', '.join(schemes)}")
        report = measure(
            Plan(
                reference=Side(reference, None, None),
                compared=Side(compared or reference, None if quantize is None else schemes[quantize], kernels),
                prompts=built_in_prompts() if prompts is None else read_prompts(prompts),
                max_tokens=max_tokens,
                adapters=chosen,
                device=device,
            )
        )
    except (DistortionError, InferenceError, TokenizationError, WeightsError) as error:
        sys.stderr.write(f"loramux distortion: {' '.join(str(error).split())}\n")
        raise typer.Exit(EXIT_CANNOT_MEASURE) from None
    text = json.dumps(dataclasses.asdict(report), ensure_ascii=False)
    if output is None:
        sys.stdout.write(text + "\n")
    else:
        output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    app()
