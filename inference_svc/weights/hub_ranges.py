"""Bytes of a file on a hub from one position to another, over as many connections as it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # of its own client
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # they are in the list of what it exports
    build_hf_headers,
    hf_raise_for_status,
    http_stream_backoff,
)

MAX_FAILURES = 5  # connections in a row that bring nothing
MAX_PAUSE_SECONDS = 8.0


class _EndedError(HTTPError):
    """The connection ended in order, and too early."""


def receive(url: str, start: int, stop: int, take: Callable[[bytes], object]) -> None:
    """Hand over the bytes from `start` to `stop`, in order, each of them once.

    Every connection asks the hub anew, for a link to its storage is valid for a while only; the token goes to the hub,
    and not to a storage elsewhere.

    Args:
        url: of the file on the hub, of one commit: its bytes must be the same each time.
        start: position in the file.
        stop: position after the last byte; not past the end of the file.
        take: gets the bytes as they arrive.

    Raises:
        HfHubHTTPError: the hub or its storage refuses.
        HTTPError: five connections in a row brought nothing.
        Exception: whatever `take` raises.
    """
    position, failures = start, 0
    while position < stop:
        before = position
        try:
            for piece in _pieces(url, position, stop):
                take(piece)
                position += len(piece)
            if position < stop:
                raise _EndedError(f"the connection ended after {position} of {stop} bytes")
        except HTTPError as error:
            failures = 1 if position > before else failures + 1
            if failures > MAX_FAILURES or isinstance(error, HfHubHTTPError):
                raise
            time.sleep(min(2.0 ** (failures - 1), MAX_PAUSE_SECONDS))


def _pieces(url: str, start: int, stop: int) -> Iterator[bytes]:
    """What one connection brings."""
    # Compressed, a piece of a file could not be told from the whole.
    headers = build_hf_headers(headers={"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"})
    with http_stream_backoff(
        "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, retry_on_exceptions=()
    ) as response:
        hf_raise_for_status(response)
        skip = start if response.status_code != 206 else 0  # who knows no ranges sends all from the first byte on
        left = stop - start
        for piece in response.iter_bytes():
            wanted = piece[skip : skip + left]
            skip = max(0, skip - len(piece))
            left -= len(wanted)
            if wanted:
                yield wanted
            if not left:
                return
