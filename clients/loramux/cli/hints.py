"""What to do about a refusal that the user can mend with another command."""

from __future__ import annotations

from loramux.client import LoramuxError
from loramux.client.adapters import short_name

_HISTORY = "`loramux ordering history {id}` shows its revisions and tags."
_UNDELETE = "`loramux ordering undelete {id}` brings it back, with its history."
_BY_REASON = {
    "ORDERING_NOT_FOUND": "`loramux ordering list` shows which there are; --show-deleted also those that were deleted.",
    "REVISION_NOT_FOUND": _HISTORY,
    "TAG_NOT_FOUND": _HISTORY,
    "ETAG_MISMATCH": "`loramux ordering show {id}` shows what it is now, with its etag.",
    "ORDERING_DELETED": _UNDELETE,
    "ORDERING_EXISTS": "`loramux ordering import FILE --id {id} --allow-existing` adds a revision to it.",
}
_BY_CODE = {"UNIMPLEMENTED": "The service is older than this command, or is not the one that was meant."}
_AWAY = "Start it (`loramux up` starts both services), or say where it is: --address, --ordering-address."
_IDS = "write a lower-case letter, then at most 62 lower-case letters, digits or hyphens, without a hyphen at the end"
_BY_FIELD = {"tag": f"A tag: {_IDS}; not hex digits only.", "ordering_id": f"An id: {_IDS}."}


def hint(error: LoramuxError) -> str | None:
    """One sentence, or None where the message says it all."""
    if error.code == "UNAVAILABLE" and not error.reason:
        return _AWAY
    if error.code == "INVALID_ARGUMENT":
        patterns = [violation.field for violation in error.violations if "regex" in violation.description]
        return next((_BY_FIELD[field] for field in patterns if field in _BY_FIELD), None)
    if error.reason == "ORDERING_EXISTS" and error.metadata.get("deleted") == "true":
        return _named(_UNDELETE, error)
    advice = _BY_REASON.get(error.reason) or _BY_CODE.get(error.code)
    return _named(advice, error) if advice else None


def _named(advice: str, error: LoramuxError) -> str:
    """With the id that the error speaks of."""
    metadata = error.metadata
    name = metadata.get("ordering_id") or metadata.get("name") or metadata.get("resource") or "ID"
    return advice.replace("{id}", short_name(name).partition("@")[0])
