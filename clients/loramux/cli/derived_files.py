"""Ordering files made from ordering files: only the named key changes, everything else stays as it was written."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from loramux.client.errors import invalid_argument


def with_order(content: bytes, names: Sequence[str], source: str) -> bytes:
    """The file with another `order`. Raises InvalidArgument if `content` is not a JSON object."""
    document = _read(content, source)
    document["order"] = list(names)
    return _write(document, content)


def with_preload(content: bytes, names: Sequence[str], adapter_model_id: str, source: str) -> bytes:
    """The file with `preload_adapters`, all from one place. Raises InvalidArgument as `with_order`."""
    document = _read(content, source)
    document["preload_adapters"] = [{"name": name, "adapter_model_id": adapter_model_id} for name in names]
    return _write(document, content)


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
