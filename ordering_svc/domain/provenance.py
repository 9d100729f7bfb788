"""What a revision's provenance keeps of the request that made it."""

from __future__ import annotations

import dataclasses
import json

from ordering_svc.domain.derivation import Derivation
from ordering_svc.domain.target_selection import TargetSelection

MAX_KEPT_ENTRIES = 64  # of a list: of a longer one the number of entries is kept; what came of it stands in the file


def arguments_json(asked: TargetSelection | Derivation, **found: str) -> str:
    """The fields that say something, as a JSON object, and what was found out; preload adapters by name."""
    kept: dict[str, object] = dict(found)
    for field in dataclasses.fields(asked):
        value = getattr(asked, field.name)
        if value is None or value == ():
            continue
        if isinstance(value, tuple):
            names = [getattr(entry, "name", entry) for entry in value]
            kept[field.name] = names if len(names) <= MAX_KEPT_ENTRIES else len(names)
        else:
            kept[field.name] = value
    return json.dumps(kept)
