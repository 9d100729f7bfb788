"""Ordering files made from ordering files: only the named key changes, everything else stays as it was written."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from loramux.client.errors import invalid_argument
from loramux.client.orderings import PreloadAdapter


def with_order(content: bytes, names: Sequence[str], source: str) -> bytes:
    """The file with another `order`. Raises InvalidArgument if `content` is not a JSON object."""
    document = _read(content, source)
    document["order"] = list(names)
    return _write(document, content)


def with_preload(content: bytes, added: Sequence[PreloadAdapter], source: str) -> bytes:
    """The file with more `preload_adapters`. Raises InvalidArgument as `with_order`, and for a name that is there."""
    document = _read(content, source)
    there = _preload(document, source)
    taken = [adapter.name for adapter in added if adapter.name in {entry.get("name") for entry in there}]
    if taken:
        raise invalid_argument(source, f"preloads {', '.join(taken)} already: remove them first")
    document["preload_adapters"] = [
        *there,
        *({"name": adapter.name, "adapter_model_id": adapter.adapter_model_id} for adapter in added),
    ]
    return _write(document, content)


def without_preload(content: bytes, removed: Sequence[str], source: str) -> bytes:
    """The file with fewer `preload_adapters`. Raises InvalidArgument as `with_order`, and for a name not there."""
    document = _read(content, source)
    there = _preload(document, source)
    missing = sorted(set(removed) - {str(entry.get("name")) for entry in there})
    if missing:
        raise invalid_argument(source, f"does not preload {', '.join(missing)}")
    document["preload_adapters"] = [entry for entry in there if entry.get("name") not in removed]
    return _write(document, content)


def _preload(document: dict[str, Any], source: str) -> list[dict[str, Any]]:
    there = document.get("preload_adapters") or []
    if not isinstance(there, list) or not all(isinstance(entry, dict) for entry in there):
        raise invalid_argument(source, "has preload_adapters that are no list of objects")
    return there


def _read(content: bytes, source: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError as error:
        raise invalid_argument(source, f"is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise invalid_argument(source, "is not an ordering file: it does not hold a JSON object")
    return document


def _write(document: dict[str, Any], like: bytes) -> bytes:
    """Written with the indentation and the ending of the file it is made from."""
    text = like.decode("utf-8")
    indent = re.search(r"\n([ \t]+)\"", text)
    written = json.dumps(document, indent=indent.group(1) if indent else None, ensure_ascii=text.isascii())
    return (written + ("\n" if text.endswith("\n") else "")).encode("utf-8")
