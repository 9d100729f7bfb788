"""Models and adapters from a Hugging Face hub: looked at before anything large is downloaded, or taken from its cache.

HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN and the token file of `hf auth login` are honoured. A
branch or tag is resolved to a commit once, and everything comes from that commit, whatever happens meanwhile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import structlog
from huggingface_hub import HfApi, constants
from huggingface_hub.file_download import repo_folder_name

from inference_svc.weights.errors import HubUnavailable, MalformedFile, TooLarge, UnsupportedFile, WeightsError
from inference_svc.weights.hub_download import HubCommit, HubFile
from inference_svc.weights.hub_errors import is_away, refusal
from inference_svc.weights.hub_ranges import receive
from inference_svc.weights.hub_reference import HubReference, is_plain
from inference_svc.weights.listing import size_text

MAX_SMALL_BYTES = 32 << 20  # of a file that is fetched to decide what to download
MAX_HEADER_BYTES = 128 << 20  # the largest vocabularies take about 20 MiB of a GGUF file
TIMEOUT_SECONDS = 10.0

_COMMIT = re.compile(r"[0-9a-f]{40}")

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class HubListing:
    """The files of one commit of a repository, on the hub or, if that is away, in the cache."""

    def __init__(self, reference: HubReference, commit: HubCommit, files: Mapping[str, HubFile], away: str) -> None:
        self.name = reference.place
        self.away = away  # why the hub is away; empty: it is not
        self.holder = "the copy in the cache" if away else "the repository"
        self.sizes = {name: file.size for name, file in files.items()}
        self._reference = reference
        self._commit = commit
        self._files = files

    @property
    def folder(self) -> Path:
        """Where the files are found once they are here."""
        return self._commit.folder

    def reference(self, file: str) -> str:
        """`org/name@revision:file`"""
        return f"{self._reference.place}:{file}"

    def has(self, files: Sequence[str]) -> bool:
        """All of them are on this machine."""
        return all((self.folder / file).exists() for file in files)

    def fetch(self, file: str) -> Path:
        """The local path of a small file; downloaded if it has to be.

        Raises:
            TooLarge: it is not small.
            WeightsError: as for `download`.
        """
        if self.sizes[file] > MAX_SMALL_BYTES:
            raise TooLarge(
                self.reference(file),
                f"it has {size_text(self.sizes[file])}, more than the {size_text(MAX_SMALL_BYTES)} allowed",
            )
        self.download([file])
        return self.folder / file

    def download(self, files: Sequence[str]) -> None:
        """Have the files on this machine, all of the same commit.

        Raises:
            NoRoom: the disk has not enough room; nothing was downloaded.
            MalformedFile: what arrived is not what the hub announced.
            HubUnavailable: the hub refuses, or is away.
        """
        wanted = {file: self._files[file] for file in files}
        _asked(self._reference, self._commit.endpoint, lambda: self._commit.download(wanted))

    def remember(self) -> None:
        """All that was asked for is here: let a start without the hub find it by the same name."""
        revision = self._reference.revision or constants.DEFAULT_REVISION
        if not self.away and not _COMMIT.fullmatch(revision):
            self._commit.remember(revision)

    def remote(self, file: str, first_read: int) -> HubFileReader:
        """A file on the hub, of which parts are read without the rest; `first_read` bytes of its start at first."""
        return HubFileReader(self._reference, self._commit, file, self.sizes[file], first_read)


class HubFileReader:
    """A file on the hub; ranges of it are asked for when they are needed."""

    def __init__(self, reference: HubReference, commit: HubCommit, file: str, size: int, first_read: int) -> None:
        self.path = Path(f"{reference.place}:{file}")
        self.size = size
        self._reference = reference
        self._endpoint = commit.endpoint
        self._url = commit.url_of(file)
        self._first_read = first_read
        self._start = b""

    def prefix(self, count: int) -> memoryview:
        """At least the first `count` bytes; the file has so many.

        Raises:
            MalformedFile: that is more than a header can need.
            WeightsError: the hub refuses, or is away.
        """
        have = len(self._start)
        if count > MAX_HEADER_BYTES:
            raise MalformedFile(str(self.path), f"its header has more than {size_text(MAX_HEADER_BYTES)}")
        if count > have:
            more = bytearray(min(self.size, max(count, 2 * have, self._first_read)) - have)
            self.read_into(have, memoryview(more), "the header")
            self._start += more
        return memoryview(self._start)

    def read_into(self, offset: int, buffer: memoryview, what: str) -> None:
        """Fill writable bytes from a position on.

        Raises:
            UnsupportedFile: it is more than is read before a download.
            WeightsError: the hub refuses, or is away.
        """
        if len(buffer) > MAX_HEADER_BYTES:
            raise UnsupportedFile(str(self.path), f"{what} has {size_text(len(buffer))}, more than is looked at")
        data = bytearray()
        stop = offset + len(buffer)
        _asked(self._reference, self._endpoint, lambda: receive(self._url, offset, stop, data.extend))
        buffer[:] = data


def open_listing(reference: HubReference) -> HubListing:
    """Look at a repository, or at what the cache has of it if the hub is away.

    Raises:
        FileMissing: the repository or revision does not exist, or is not shown.
        HubUnavailable: the hub refuses; or it is away, and the cache has nothing.
    """
    endpoint, cache = hub_endpoint(), hub_cache()
    try:
        info = HfApi(endpoint=endpoint).model_info(
            reference.repository, revision=reference.revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
    # The libraries below raise what they like: connection, URL, JSON and storage errors without a common parent.
    except Exception as error:
        refused = refusal(reference.place, reference.repository, endpoint, error)
        if not is_away(error):
            raise refused from error
        cached = _cached_listing(reference, endpoint, cache, refused.sentence)
        if cached is None:
            raise HubUnavailable(
                reference.place, f"{refused.sentence}, and the cache in {cache} has no copy"
            ) from error
        _log.warning("using the copy in the cache", name=reference.place, reason=refused.sentence)
        return cached
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise HubUnavailable(reference.place, f"{endpoint} does not say which commit it has: is it a hub?")
    files = {}
    for sibling in info.siblings or ():
        large = sibling.lfs
        size = sibling.size if sibling.size is not None else large.size if large is not None else 0
        files[sibling.rfilename] = HubFile(size, large.sha256 if large is not None else None)
    commit = HubCommit(reference.place, reference.repository, info.sha, endpoint, cache)
    return HubListing(reference, commit, {name: file for name, file in files.items() if is_plain(name)}, "")


def _cached_listing(reference: HubReference, endpoint: str, cache: Path, away: str) -> HubListing | None:
    place = cache / repo_folder_name(repo_id=reference.repository, repo_type=constants.REPO_TYPE_MODEL)
    revision = reference.revision or constants.DEFAULT_REVISION
    try:
        found = revision if _COMMIT.fullmatch(revision) else (place / "refs" / revision).read_text().strip()
    except OSError:
        return None
    commit = HubCommit(reference.place, reference.repository, found, endpoint, cache)
    paths = (path for path in commit.folder.rglob("*") if path.is_file())
    files = {path.relative_to(commit.folder).as_posix(): HubFile(path.stat().st_size, None) for path in paths}
    return HubListing(reference, commit, files, away) if files else None


def hub_endpoint() -> str:
    """The hub's URL. Read when it is needed; the library reads its own once, at import."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or str(constants.ENDPOINT)


def hub_cache() -> Path:
    """The folder of the cache, found as the library finds it, but when it is needed."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(constants.HF_HUB_CACHE)


def _asked(reference: HubReference, endpoint: str, question: Callable[[], T]) -> T:
    """The answer, or a sentence about why there is none."""
    try:
        return question()
    except WeightsError:
        raise
    except Exception as error:
        raise refusal(str(reference), reference.repository, endpoint, error) from error
