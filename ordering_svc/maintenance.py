"""Commands of `loramux-ordering` that work on the database itself: migrate, backup, restore, doctor."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ordering_svc.config import Config, load_config
from ordering_svc.errors import OrderingServiceError
from ordering_svc.logs import configure_logs
from ordering_svc.persistence.backup import back_up, restore
from ordering_svc.persistence.database import connected, name_of, schema_steps
from ordering_svc.persistence.examination import examine
from ordering_svc.server import open_store

EXIT_UNSOUND = 1
EXIT_CANNOT_START = 2

DataDir = Annotated[Path | None, typer.Option(help="Folder of the SQLite file. [~/.local/share/loramux/ordering]")]
DatabaseUrl = Annotated[str | None, typer.Option(help="sqlite:///PATH or postgresql://..., instead of --data-dir.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def add_commands(app: typer.Typer) -> None:
    """Put them beside the command that serves."""
    for name, command in (
        ("migrate", _migrate),
        ("backup", _backup),
        ("restore", _restore),
        ("doctor", _doctor),
    ):
        app.command(name)(command)


def _migrate(data_dir: DataDir = None, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Bring the tables up to date, as starting the service does too."""
    with _failing_clearly():
        config = _config(data_dir, database_url)
        open_store(config).close()
        url = config.database()
        engine = connected(url)
        step, _ = schema_steps(engine)
        engine.dispose()
        _say(as_json, f"{name_of(url)} is at step {step}", database=name_of(url), step=step)


def _backup(
    copy: Annotated[Path, typer.Argument(help="The file to write.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy the SQLite database to a file, while the service runs: one consistent state, whole or not at all."""
    with _failing_clearly():
        size = back_up(_config(data_dir, database_url).database(), copy, is_replacing=force)
        _say(as_json, f"wrote {copy} ({size} bytes)", copy=str(copy), size_bytes=size)


def _restore(
    copy: Annotated[Path, typer.Argument(help="A file that `backup` wrote.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Put a copy in the place of the SQLite database, while the service is stopped. What was there before is kept."""
    with _failing_clearly():
        url = _config(data_dir, database_url).database()
        kept = restore(copy, url)
        before = f"; what was there before is in {kept}" if kept else ""
        _say(as_json, f"{name_of(url)} is {copy} now{before}", database=name_of(url), kept=str(kept) if kept else None)


def _doctor(data_dir: DataDir = None, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Look the database over: library, settings, schema, every revision against its digest. Exit code 1: unsound."""
    with _failing_clearly():
        findings = examine(_config(data_dir, database_url).database())
    if as_json:
        sys.stdout.write(json.dumps([dataclasses.asdict(finding) for finding in findings]) + "\n")
    else:
        table = Table("Check", "", "Finding", box=None)
        for finding in findings:
            table.add_row(finding.check, "[green]ok[/]" if finding.is_sound else "[red]wrong[/]", finding.detail)
        Console().print(table)
    if not all(finding.is_sound for finding in findings):
        raise typer.Exit(EXIT_UNSOUND)


def _config(data_dir: Path | None, database_url: str | None) -> Config:
    flags = {"data_dir": data_dir, "database_url": database_url}
    config = load_config({name: value for name, value in flags.items() if value is not None})
    configure_logs(config.log_format, "error")  # what is wrong is said in one line, not logged
    return config


def _say(as_json: bool, sentence: str, **values: object) -> None:
    sys.stdout.write((json.dumps(values) if as_json else sentence) + "\n")


@contextmanager
def _failing_clearly() -> Iterator[None]:
    try:
        yield
    except OrderingServiceError as error:
        sys.stderr.write(f"loramux-ordering: {error.message}\n")
        raise typer.Exit(EXIT_CANNOT_START) from None
