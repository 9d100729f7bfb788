"""Fetches one `config.json` from the hub, or finds it in the local cache."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, errors, get_session, hf_hub_download
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # of the library's own client

from ordering_svc.errors import HubUnavailable, InvalidValue, ModelNotFound

CONFIG_NAME = "config.json"
TIMEOUT_SECONDS = 10.0


def fetch_config(repository: str, revision: str | None, endpoint: str | None) -> Path:
    """The local path of the repository's `config.json`; the endpoint is that of HF_ENDPOINT unless given.

    Raises:
        InvalidValue: the id is malformed.
        ModelNotFound: the hub has no such repository, revision or config, or does not show it to us.
        HubUnavailable: the hub does not answer or is switched off, and the cache has no copy.
    """
    is_reachable = _answers(endpoint or constants.ENDPOINT)
    named = f"{repository}@{revision}" if revision else repository
    try:
        return Path(
            hf_hub_download(
                repository,
                CONFIG_NAME,
                revision=revision,
                endpoint=endpoint,
                etag_timeout=TIMEOUT_SECONDS,
                local_files_only=not is_reachable,
            )
        )
    except errors.HFValidationError as error:
        raise InvalidValue("model.hub_id", f"{named!r} is not a hub id: {error}") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        what = {
            errors.RevisionNotFoundError: "no such revision",
            errors.RemoteEntryNotFoundError: f"no {CONFIG_NAME}",
        }.get(type(error), "no such repository, or it is not shown to us")
        raise ModelNotFound(f"the hub has {what} for {named!r}", named) from None
    except (TransportError, OSError) as error:  # our own OSErrors too: without the file there is nothing to read
        raise HubUnavailable(
            f"the hub cannot be reached and {named!r} is not in the local cache: try again, or send the"
            " text of its config",
            hub_id=named,
            cause=type(error).__name__,
        ) from None


def _answers(endpoint: str) -> bool:
    """Ask once, so that a hub that is away is known in seconds: the library would retry for half a minute."""
    try:
        return int(get_session().head(endpoint, timeout=TIMEOUT_SECONDS).status_code) < 500
    except (TransportError, OSError, ValueError):
        return False
