"""The command: judge files, write what was found, and say with the exit status whether that is all right."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ordering_svc.domain.architectures import QUANTIZED_LAYERS
from ordering_svc.domain.ordering import MAX_FILE_BYTES, AdapterKind
from ordering_svc.domain.positions import positions_in
from ordering_svc.domain.problem_codes import CODES
from ordering_svc.domain.problems import Problem
from ordering_svc.errors import OrderingServiceError
from ordering_svc.judge import Against, Judge
from ordering_svc.lint.findings import Finding, Format, written
from ordering_svc.model_config.reader import HubModel, LocalModel, ModelReader, ModelSource

EXIT_PROBLEMS, EXIT_UNUSABLE = 1, 2
EVERYWHERE = (Path("/"),)  # who runs the command may read what the system lets them read

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _show_codes(wanted: bool) -> None:
    if wanted:
        for code, meaning in CODES.items():
            sys.stdout.write(f"{code}: {meaning.summary}\n    {meaning.hint}\n")
        raise typer.Exit


class Kind(StrEnum):
    """What the names in `order` stand for."""

    LORA = "lora"
    XLORA = "xlora"


@app.command(
    help="Judge ordering files without a service. Exits with 0 (clean), 1 (problems) or 2 (wrong use, unreadable)."
)
def lint(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Ordering files.")],
    form: Annotated[Format, typer.Option("--format", help="How to write what is found.")] = Format.TEXT,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|HUB_ID", help="Also check the layers against this model and its checkpoint's header."
        ),
    ] = None,
    adapters: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also check the adapters of this folder and an X-LoRA's classifier."),
    ] = None,
    kind: Annotated[Kind | None, typer.Option(help="What the files are for.")] = None,
    quantized: Annotated[
        str | None, typer.Option(metavar="|".join(QUANTIZED_LAYERS), help="Check for this quantized base.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="Leave out warnings with this code; repeatable.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as problems.")] = False,
    _codes: Annotated[
        bool,
        typer.Option("--codes", callback=_show_codes, is_eager=True, help="Explain all codes of problems, and exit."),
    ] = False,
) -> None:
    """Judge ordering files."""
    if quantized is not None and quantized not in QUANTIZED_LAYERS:
        raise typer.BadParameter(f"--quantized {quantized}: there are lists for {', '.join(QUANTIZED_LAYERS)}")
    for code in ignore or ():
        if code not in CODES:
            raise typer.BadParameter(f"--ignore {code}: there is no such code; --codes explains all")
    if adapters is not None and not adapters.is_dir():
        raise typer.BadParameter(f"--adapters {adapters}: there is no such folder")
    against = Against(
        kind=AdapterKind.UNSPECIFIED if kind is None else AdapterKind(kind.value),
        model=None if model is None else _model_named(model),
        quantized_architecture=quantized or "",
        checks_adapters=adapters is not None,
        adapter_model_id="" if adapters is None else str(adapters.resolve()),
    )
    findings: list[Finding] = []
    judged: list[str] = []
    unusable = False
    for path in files:
        try:
            findings += (each for each in _judged(path, against) if _is_wanted(each.problem, ignore or ()))
            judged.append(str(path))
        except OSError as error:
            unusable = True
            sys.stderr.write(f"error: {path}: {error.strerror or error}\n")
        except OrderingServiceError as error:  # of the model: the same for every file
            sys.stderr.write(f"error: {error.message}\n")
            raise typer.Exit(EXIT_UNUSABLE) from None
    sys.stdout.writelines(f"{line}\n" for line in written(findings, judged, form))
    errors = sum(finding.problem.is_error for finding in findings)
    warnings = len(findings) - errors
    if form is Format.TEXT:
        sys.stderr.write(f"files: {len(judged)}, errors: {errors}, warnings: {warnings}\n")
    if unusable:
        raise typer.Exit(EXIT_UNUSABLE)
    if errors or (strict and warnings):
        raise typer.Exit(EXIT_PROBLEMS)


def _is_wanted(problem: Problem, ignored: Sequence[str]) -> bool:
    """Errors always are: an ordering that cannot work is no matter of taste."""
    return problem.is_error or problem.code not in ignored


def _judged(path: Path, against: Against) -> list[Finding]:
    """The findings of one file; relative places of its preload adapters are looked for beside it, then here."""
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    roots = (path.resolve().parent, Path.cwd(), *EVERYWHERE)
    problems = Judge(ModelReader(EVERYWHERE), EVERYWHERE, roots).problems(content, against)
    positions = positions_in(content) if problems else None
    return [Finding(str(path), positions.of(problem), problem) for problem in problems if positions is not None]


def _model_named(word: str) -> ModelSource:
    """A path that is there or looks like one, or else a hub id."""
    path = Path(word).expanduser()
    if path.exists() or word.startswith(("/", "./", "../", "~")) or word.endswith(".gguf"):
        return LocalModel(str(path.resolve()))
    return HubModel(word)
