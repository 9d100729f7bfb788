"""Many ordering files at once: folders into the service and out of it, with a report on each file.

Both are generators of calls: the blocking and the asynchronous client make the calls and send back the answers.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramux.client import ordering_calls
from loramux.client.adapters import AdapterKind
from loramux.client.calls import AnyCall, Steps
from loramux.client.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, LoramuxError, NotFound
from loramux.client.orderings import Ordering, Problem, ordering_id_of
from loramux.client.whole_files import write_whole

MAX_FILE_BYTES = 16 * 2**20
REVISION_ID_DIGITS = 16


class FileStatus(enum.StrEnum):
    """What became of a file."""

    IMPORTED = "imported"
    EXPORTED = "exported"
    UNCHANGED = "unchanged"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file: the ordering that it is, what became of it, and, if it was refused, why: every problem of it."""

    path: Path
    ordering_id: str
    status: FileStatus
    revision_number: int | None = None
    message: str = ""
    reason: str = ""
    problems: tuple[Problem, ...] = ()


_OF_THE_FILE = (InvalidArgument, AlreadyExists, FailedPrecondition, NotFound, Aborted)
"""Refusals that concern one file; any other error ends the whole."""


def ordering_files_in(places: Sequence[Path]) -> tuple[Path, ...]:
    """Files as they are, and the `.json` files directly inside folders, by name. Raises OSError."""
    return tuple(file for place in places for file in ([place] if not place.is_dir() else _inside(place)))


def _inside(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.suffix == ".json" and not path.name.startswith("."))


def import_files(
    places: Sequence[Path],
    *,
    allow_existing: bool,
    validate_only: bool,
    kind: AdapterKind | None,
    adapter_model_id: str,
    description: str,
    labels: Mapping[str, str] | None,
) -> Steps[tuple[FileReport, ...]]:
    """Stores every file; one that is refused keeps no other from being stored.

    A file whose bytes are those of the newest revision is unchanged, so an import can be repeated. Raises OSError for a
    folder that cannot be read.
    """
    files = ordering_files_in(places)
    ids = [ordering_id_of(path) for path in files]
    reports: list[FileReport] = []
    for path, ordering_id in zip(files, ids, strict=True):

        def storing(content: bytes, current: Ordering | None, ordering_id: str = ordering_id) -> AnyCall[Ordering]:
            return ordering_calls.import_ordering(
                content,
                ordering_id,
                allow_existing=allow_existing,
                etag=current.etag if current is not None and allow_existing else None,
                kind=kind,
                adapter_model_id=adapter_model_id,
                description=description,
                labels=labels,
                options={"validate_only": validate_only},
            )

        if ids.count(ordering_id) > 1:
            same = ", ".join(str(other) for other, its_id in zip(files, ids, strict=True) if its_id == ordering_id)
            reports.append(_refused(path, ordering_id, f"several files would be {ordering_id}: {same}", "ID_DUPLICATE"))
        else:
            reports.append((yield from _import(path, ordering_id, storing, kind)))
    return tuple(reports)


def _import(
    path: Path,
    ordering_id: str,
    storing: Callable[[bytes, Ordering | None], AnyCall[Ordering]],
    kind: AdapterKind | None,
) -> Steps[FileReport]:
    try:
        content = _read(path)
    except (OSError, ValueError) as error:
        return _refused(path, ordering_id, str(error), "FILE")
    try:
        current = yield from _found(ordering_id)
        if current is not None and current.revision_id == _revision_id(content):
            return FileReport(path, ordering_id, FileStatus.UNCHANGED, current.revision_number)
        stored: Ordering = yield storing(content, current)
    except _OF_THE_FILE as error:
        problems: tuple[Problem, ...] = ()
        if error.reason == "INVALID_ORDERING":  # which tells as many problems as fit; a validation tells all
            problems = (yield _validation(content, kind)).problems
        return _refused(path, ordering_id, error.message, error.reason, problems)
    return FileReport(path, ordering_id, FileStatus.IMPORTED, stored.revision_number)


def _refused(path: Path, ordering_id: str, message: str, reason: str, problems: tuple[Problem, ...] = ()) -> FileReport:
    return FileReport(path, ordering_id, FileStatus.REFUSED, None, message, reason, problems)


def export_files(folder: Path, *, filter: str, overwrite: bool, validate_only: bool) -> Steps[tuple[FileReport, ...]]:
    """Writes the newest file of every ordering that the filter lets through as `{id}.json`, each wholly or not at all.

    A file that is there with other bytes is refused unless it may be overwritten. Raises OSError for a folder that
    cannot be made.
    """
    if not validate_only:
        folder.mkdir(parents=True, exist_ok=True)
    page_call = ordering_calls.list_orderings(filter, "", False)
    reports = []
    token, is_last = "", False
    while not is_last:
        page = yield page_call(token)
        token, is_last = page.next_token, not page.next_token
        for ordering in page.items:
            path = folder / f"{ordering.id}.json"
            try:
                file = yield ordering_calls.export_ordering(ordering.id, ordering.revision_number)
                status = _export(path, file.json, overwrite=overwrite, validate_only=validate_only)
                reports.append(FileReport(path, ordering.id, status, ordering.revision_number))
            except (*_OF_THE_FILE, OSError) as error:
                reason = error.reason if isinstance(error, LoramuxError) else "FILE"
                reports.append(_refused(path, ordering.id, str(error), reason))
    return tuple(reports)


def _export(path: Path, content: bytes, *, overwrite: bool, validate_only: bool) -> FileStatus:
    there = path.read_bytes() if path.exists() else None
    if there == content:
        return FileStatus.UNCHANGED
    if there is not None and not overwrite:
        raise FileExistsError(f"{path} is there with other content: overwrite it, or export to another folder")
    if not validate_only:
        write_whole(path, content)
    return FileStatus.EXPORTED


def _read(path: Path) -> bytes:
    """Raises OSError, and ValueError for a file that no ordering can be."""
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{path} has {size} bytes, the limit is {MAX_FILE_BYTES}")
    return path.read_bytes()


def _revision_id(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:REVISION_ID_DIGITS]


def _found(ordering_id: str) -> Steps[Ordering | None]:
    try:
        found: Ordering = yield ordering_calls.get_ordering(ordering_id, None, False)
    except NotFound:
        return None
    return found


def _validation(content: bytes, kind: AdapterKind | None) -> AnyCall[Any]:
    return ordering_calls.validate_ordering(
        content, kind=kind, model=None, quantized_architecture="", check_adapters=False, adapter_model_id=""
    )
