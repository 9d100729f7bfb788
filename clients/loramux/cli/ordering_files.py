"""`loramux ordering import|export|validate`: orderings as files."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from loramux.cli.ordering import (
    DescriptionOption,
    EtagOption,
    KindOption,
    LabelOption,
    PlaceOption,
    RequestIdOption,
    ValidateOnlyOption,
    note_validate_only,
    pairs,
)
from loramux.cli.ordering_folders import emit_reports
from loramux.cli.ordering_tables import ordering_table
from loramux.cli.problems import SERVICE_ERROR, CommandError
from loramux.cli.session import JsonOption, OrderingAddressOption, Session, open_session
from loramux.cli.tables import validation_table
from loramux.client import ConfigModel, HubModel, LocalModel, OrderingDocument, OrderingFile
from loramux.client.orderings import ModelReference

OutputOption = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the file here.")]
SourceArgument = Annotated[str, typer.Argument(metavar="FILE|ID[@REVISION]", help="A file, or a stored ordering.")]
ModelOption = Annotated[
    str, typer.Option("--model", metavar="PATH|HUB_ID", help="Folder with config.json, .gguf file, or hub id.")
]


class Architecture(enum.StrEnum):
    """Quantized architectures with a list of supported layers."""

    LLAMA = "llama"
    PHI3 = "phi3"


def import_file(
    context: typer.Context,
    places: Annotated[list[Path], typer.Argument(metavar="FILE|FOLDER...", help="Ordering files, or folders of them.")],
    ordering_id: Annotated[
        str | None, typer.Option("--id", help="Its id; default: the file's name, with hyphens.")
    ] = None,
    allow_existing: Annotated[
        bool, typer.Option("--allow-existing", help="Make a new revision if the id is taken.")
    ] = False,
    etag: EtagOption = None,
    kind: KindOption = None,
    adapter_model_id: PlaceOption = None,
    description: DescriptionOption = None,
    label: LabelOption = None,
    validate_only: ValidateOnlyOption = False,
    request_id: RequestIdOption = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store ordering files unchanged. Of a folder or several files, each gets its name as id, and a report.

    Example: loramux ordering import demo.json --kind xlora --allow-existing
    Example: loramux ordering import orderings/ --allow-existing --validate-only
    """
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        if len(places) > 1 or places[0].is_dir():
            if ordering_id is not None or etag is not None or request_id is not None:
                raise typer.BadParameter("--id, --etag and --request-id are for one file")
            reports = client.orderings.import_files(
                places,
                allow_existing=allow_existing,
                validate_only=validate_only,
                kind=kind,
                adapter_model_id=adapter_model_id or "",
                description=description or "",
                labels=pairs(label) if label else None,
            )
            note_validate_only(session, validate_only)
            emit_reports(session, reports)
            return
        ordering = client.orderings.import_file(
            places[0],
            ordering_id,
            allow_existing=allow_existing,
            etag=etag,
            kind=kind,
            adapter_model_id=adapter_model_id or "",
            description=description or "",
            labels=pairs(label) if label else None,
            validate_only=validate_only,
            request_id=request_id,
        )
    session.emit(ordering, ordering_table)
    note_validate_only(session, validate_only)


def export_file(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="ID[@REVISION]", help="The ordering.")] = None,
    output: OutputOption = None,
    folder: Annotated[
        Path | None, typer.Option("--all", metavar="FOLDER", help="Instead: write every ordering's file here.")
    ] = None,
    filter: Annotated[str, typer.Option(help="With --all: only these, as for list.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="With --all: also files with other content.")] = False,
    validate_only: ValidateOnlyOption = False,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the ordering file of a revision, byte for byte; or, with --all, the newest of every ordering to a folder.

    Example: loramux ordering export demo@prod -o demo.json
    Example: loramux ordering export --all backup/
    """
    session = open_session(context, as_json, None, ordering_address)
    if (name is None) == (folder is None):
        raise typer.BadParameter("say which ordering, or --all FOLDER")
    if folder is None and (filter or overwrite or validate_only):
        raise typer.BadParameter("--filter, --overwrite and --validate-only go with --all")
    if folder is not None and output is not None:
        raise typer.BadParameter("--output is for one ordering: --all names the folder")
    with session.client() as client:
        if folder is not None:
            reports = client.orderings.export_files(folder, filter, overwrite=overwrite, validate_only=validate_only)
            emit_reports(session, reports)
            return
        assert name is not None
        file = client.orderings.export_file(name)
    deliver(session, file, output)


def validate(
    context: typer.Context,
    source: SourceArgument,
    model: Annotated[
        str | None, typer.Option("--model", metavar="PATH|HUB_ID", help="Check the layers against this model.")
    ] = None,
    kind: KindOption = None,
    quantized: Annotated[
        Architecture | None, typer.Option("--quantized-architecture", help="Check for this quantized base.")
    ] = None,
    check_adapters: Annotated[
        bool, typer.Option("--check-adapters", help="Check the adapters and an X-LoRA's classifier by their headers.")
    ] = False,
    adapter_model_id: Annotated[
        str | None,
        typer.Option("--adapter-model-id", help="Check the adapters at this folder that the service may read."),
    ] = None,
    ordering_address: OrderingAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every problem of a file or a stored ordering; exits with 1 if it is not valid. Without a service: lint."""
    session = open_session(context, as_json, None, ordering_address)
    with session.client() as client:
        validation = client.orderings.validate(
            file_named(source) or source,
            kind=kind,
            model=None if model is None else model_reference(model),
            quantized_architecture="" if quantized is None else quantized.value,
            check_adapters=check_adapters or adapter_model_id is not None,
            adapter_model_id=adapter_model_id or "",
        )
    session.emit(validation, validation_table)
    if not validation.valid:
        raise typer.Exit(SERVICE_ERROR)


def file_named(word: str) -> Path | None:
    """The file of that name; None if the word is the name of a stored ordering.

    Raises CommandError for a word that can only be a file's name, and there is none.
    """
    path = Path(word)
    if path.is_file():
        return path
    if word.endswith(".json") or ("/" in word and not word.startswith("orderings/")):
        raise CommandError("FILE", f"there is no file {word}")
    return None


def model_reference(word: str) -> ModelReference:
    """A folder is read here; a .gguf file or absolute path is the service's to read; anything else is a hub id."""
    path = Path(word).expanduser()
    if (path / "config.json").is_file():
        return ConfigModel((path / "config.json").read_text(encoding="utf-8"))
    if path.exists() or word.startswith(("/", "./", "../", "~")) or word.endswith(".gguf"):
        return LocalModel(str(path.resolve()))
    return HubModel(word)


def deliver(session: Session, file: OrderingFile, output: Path | None) -> None:
    if output is not None:
        file.save(output)
        session.emit({"path": output, "revision_id": file.revision_id}, lambda _: Text(f"wrote {output}"))
    elif session.json:
        document = OrderingDocument.from_json(file.json)
        session.emit({"revision_id": file.revision_id, "document": document}, str)
    else:
        session.write(file.json.decode("utf-8"))
