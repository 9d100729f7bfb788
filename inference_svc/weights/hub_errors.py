"""What a hub's refusal means, and what its user can do about it.

A hub answers 401 or 404 alike for what does not exist and for what it does not show, so that nobody learns of private
repositories; which token was sent, and whether it is valid, is what tells the cases apart.
"""

from __future__ import annotations

import errno
import os

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from inference_svc.weights.errors import FileMissing, HubUnavailable, NoRoom, WeightsError

_TOO_MANY = 429
_LATER = frozenset({408, _TOO_MANY})  # with 5xx: the hub answers, and may have the thing another time


def refusal(name: str, repository: str, endpoint: str, error: Exception) -> WeightsError:
    """The error that says in a sentence why the hub does not give what was asked for.

    Args:
        name: what was asked for, as the user wrote it.
        repository: `org/name`.
        endpoint: the hub's URL.
        error: what huggingface_hub raised.
    """
    if isinstance(error, GatedRepoError):
        return HubUnavailable(name, _gated(repository, endpoint, error))
    if isinstance(error, RepositoryNotFoundError):
        return FileMissing(name, f"{endpoint} {_not_shown()}")
    if isinstance(error, DisabledRepoError):
        return HubUnavailable(name, f"{endpoint} has disabled access to {repository}: see {endpoint}/{repository}")
    if isinstance(error, RevisionNotFoundError):
        revision = name.partition("@")[2].partition(":")[0] or "main"
        return FileMissing(name, f"{repository} has no revision {revision!r}: name a branch, a tag or a commit")
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return FileMissing(name, f"{endpoint} lists a file that it does not have: {_sentence(error)}")
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return HubUnavailable(name, _forbidden(endpoint, error))
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return NoRoom(name, "the disk is full; what has arrived is kept: make room and start again")
    return HubUnavailable(name, f"{endpoint} {_away(error)}")


def is_away(error: Exception) -> bool:
    """The hub did not answer, or not now: what the cache holds is as good as can be had."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in _LATER
    return True


def _gated(repository: str, endpoint: str, error: GatedRepoError) -> str:
    page = f"{endpoint}/{repository}"
    token = _token_place()
    if token is None:
        return f"{repository} is gated: accept its conditions at {page}, then set HF_TOKEN to a token of that account"
    if error.response.status_code == 401:
        return f"{repository} is gated, and the token in {token} is not accepted: set HF_TOKEN to a valid one"
    return (
        f"{repository} is gated, and the account of the token in {token} has no access yet: ask for it at {page} "
        "(a fine-grained token also needs the permission to read gated repositories)"
    )


def _not_shown() -> str:
    token = _token_place()
    if token is None:
        return "has no such repository, or it is private: check the name, or set HF_TOKEN to a token that may read it"
    return f"has no such repository, or does not show it to the account of the token in {token}: check name and account"


def _forbidden(endpoint: str, error: HfHubHTTPError) -> str:
    token = _token_place()
    if token is None:
        return f"{endpoint} asks for a login: set HF_TOKEN ({_sentence(error)})"
    if error.response.status_code == 401:
        return f"{endpoint} does not accept the token in {token}: it is wrong or has expired"
    return f"{endpoint} does not let the token in {token} read this ({_sentence(error)})"


def _away(error: Exception) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "is not asked, because HF_HUB_OFFLINE is set"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == _TOO_MANY:
            wait = error.response.headers.get("Retry-After", "")
            when = f"in {wait} seconds" if wait.isdigit() else "later"
            return f"got too many requests from here: try again {when}" + (
                "" if _token_place() else ", or set HF_TOKEN, which raises the limit"
            )
        return f"is out of order (HTTP {status}): try again later"
    return f"cannot be used: {_sentence(error)}"


def _token_place() -> str | None:
    """Where the token lies that is sent, if one is."""
    if get_token() is None or constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(variable):
            return variable
    return constants.HF_TOKEN_PATH


def _sentence(error: Exception) -> str:
    """Never a URL of the storage behind the hub: a signed one is a key."""
    if isinstance(error, HfHubHTTPError):
        kind, said = f"HTTP {error.response.status_code}", error.server_message or ""
    else:
        kind, said = type(error).__name__, str(error)
    lines = said.strip().splitlines()
    return f"{kind}: {lines[0][:300]}" if lines else kind
