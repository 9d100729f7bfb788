"""What `loramux up` finds out before it starts anything: addresses, model folders, ordering files to import."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loramux.cli.problems import USAGE_ERROR, CommandError
from loramux.client import AdapterKind
from loramux.client.orderings import ordering_id_of


def default_data_dir() -> Path:
    """Where this platform keeps a user's data."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "loramux"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "loramux"


def free_address(word: str, option: str) -> str:
    """`HOST:PORT` from `HOST:PORT` or `PORT`, if nothing listens there. Raises CommandError."""
    host, separator, port = word.rpartition(":")
    host = host if separator else "127.0.0.1"
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or not host:
        raise CommandError("ADDRESS", f"{option} {word!r} is not HOST:PORT", USAGE_ERROR)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise CommandError("ADDRESS", f"cannot listen on {host}:{port}: {error}", USAGE_ERROR) from error
            raise CommandError(
                "PORT_IN_USE",
                f"{host}:{port} is in use, perhaps by another `loramux up`; say {option} HOST:PORT for another one",
            ) from error
    return f"{host}:{port}"


def model_folders(model: str) -> tuple[Path, ...]:
    """The local folders that a model reference reads from. Raises CommandError if a wheel is not installed."""
    if model.startswith("wheel:"):
        package = model.removeprefix("wheel:")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            wheel = package.replace("_", "-")
            raise CommandError("MODEL_NOT_INSTALLED", f"{model}: the package is missing: pip install {wheel}")
        return tuple(Path(place).resolve() for place in spec.submodule_search_locations)
    path = Path(model).expanduser()
    if path.is_dir():
        return (path.resolve(),)
    return (path.resolve().parent,) if path.exists() else ()


@dataclass(frozen=True, slots=True)
class OrderingImport:
    """An ordering file, the id it gets, and the adapters that were found beside it."""

    path: Path
    ordering_id: str
    adapter_folder: Path | None
    kind: AdapterKind | None


def ordering_imports(places: Sequence[Path]) -> tuple[OrderingImport, ...]:
    """The ordering files among `places`: files as they are, and those directly inside folders. Raises CommandError."""
    found: list[OrderingImport] = []
    for place in places:
        if place.is_dir():
            inside = [_read(path, strict=False) for path in sorted(place.glob("*.json"))]
            orderings = [entry for entry in inside if entry is not None]
            if not orderings:
                raise CommandError("NO_ORDERINGS", f"the folder {place} holds no ordering file")
            found.extend(orderings)
        else:
            entry = _read(place, strict=True)
            assert entry is not None
            found.append(entry)
    return tuple(found)


def _read(path: Path, *, strict: bool) -> OrderingImport | None:
    """One file; None if it is no ordering file, unless `strict`: then the service says what is wrong with it."""
    try:
        content: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise CommandError("FILE", f"cannot read the ordering file {path}: {error.strerror}") from error
    except ValueError:
        content = None
    looks_right = isinstance(content, dict) and "base_model_id" in content
    if not strict and not (looks_right and {"order", "layers", "preload_adapters"} & set(content)):
        return None
    order = content.get("order") if isinstance(content, dict) else None
    names = [name for name in order if isinstance(name, str)] if isinstance(order, list) else []
    folder = _folder_with(path.resolve().parent, names)
    return OrderingImport(path, ordering_id_of(path), folder, _kind(folder, names))


def _folder_with(start: Path, names: Sequence[str]) -> Path | None:
    """The folder that holds one sub-folder a name: beside the file, or one level below, if there is exactly one."""
    if not names:
        return None
    folders = (start, *sorted(path for path in start.iterdir() if path.is_dir()))
    fitting = [folder for folder in folders if all((folder / name).is_dir() for name in names)]
    return fitting[0] if len(fitting) == 1 or (fitting and fitting[0] == start) else None


def _kind(folder: Path | None, names: Sequence[str]) -> AdapterKind | None:
    """X-LoRA if the folder's classifier was trained with these names, LoRA if with others; None without one."""
    if folder is None:
        return None
    try:
        config: Any = json.loads((folder / "xlora_config.json").read_bytes())
    except (OSError, ValueError):
        return None
    adapters = config.get("adapters") if isinstance(config, dict) else None
    if not isinstance(adapters, dict | list):
        return AdapterKind.XLORA
    return AdapterKind.XLORA if len(adapters) == len(names) and _same(adapters, names) else AdapterKind.LORA


def _same(adapters: dict[str, Any] | list[Any], names: Sequence[str]) -> bool:
    # The original layout lists paths or names; their last parts are the names.
    return [str(entry).rstrip("/").rpartition("/")[2] for entry in adapters] == list(names)
