"""What to do about a refusal that the user can mend with another command."""

from __future__ import annotations

from loramux.client import LoramuxError

_BY_REASON = {
    "ORDERING_NOT_FOUND": "`loramux ordering list` shows which there are; --show-deleted also those that were deleted.",
    "REVISION_NOT_FOUND": "`loramux ordering history ID` shows its revisions and tags.",
    "TAG_NOT_FOUND": "`loramux ordering history ID` shows its revisions and tags.",
    "ORDERING_DELETED": "`loramux ordering undelete ID` brings it back, with its history.",
    "ORDERING_NOT_DELETED": "`loramux ordering delete ID` comes first.",
    "ORDERING_EXISTS": "`loramux ordering import --allow-existing` adds a revision to it; "
    "if it was deleted, `loramux ordering undelete ID` brings it back.",
    "ETAG_MISMATCH": "`loramux ordering show ID` shows what it is now, with its etag; then decide.",
}
_BY_CODE = {"UNIMPLEMENTED": "The service is older than this command, or is not the one that was meant."}
_AWAY = "Start it (`loramux up` starts both services), or say where it is: --address, --ordering-address."


def hint(error: LoramuxError) -> str | None:
    """One sentence, or None where the message says it all."""
    if error.code == "UNAVAILABLE" and not error.reason:
        return _AWAY
    return _BY_REASON.get(error.reason) or _BY_CODE.get(error.code)
