"""Values of the client as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loramux.client import ActiveAdapters, Base, XLoRA
from loramux.client.adapters import Selection


def to_json(value: object) -> str:
    """One line of JSON: dataclasses by field, arrays as nested lists, times in ISO 8601."""
    return json.dumps(to_plain(value), ensure_ascii=False)


def to_plain(value: Any) -> Any:
    """The same as dictionaries, lists, strings and numbers."""
    if isinstance(value, ActiveAdapters):
        return {**selection_to_plain(value.selection), "generation": value.generation}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, Path):
        return str(value)
    return value


def selection_to_plain(selection: Selection) -> dict[str, Any]:
    """A choice of adapters with its form spelled out."""
    if isinstance(selection, Base):
        return {"selection": "base"}
    if isinstance(selection, XLoRA):
        return {"selection": "xlora", "name": selection.name}
    return {"selection": "loras", "adapters": [to_plain(lora) for lora in selection]}
