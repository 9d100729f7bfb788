"""Downloads files of one commit into the cache that huggingface_hub keeps, so that other tools find them there too.

A large file goes on where it stopped, even in a new process: huggingface_hub itself does so only within one call. Such
a file is kept as `blobs/SHA256.incomplete` until it is whole and its SHA-256 is right. The cache's layout is the
documented one: `blobs/`, named by their hash; `snapshots/COMMIT/`, which links to them; `refs/`, which names commits.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import structlog
from huggingface_hub import hf_hub_download, hf_hub_url
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # it is in the list of what they export

from inference_svc.weights.download_progress import DownloadProgress, SilentBar
from inference_svc.weights.errors import MalformedFile, NoRoom
from inference_svc.weights.hub_ranges import receive
from inference_svc.weights.listing import size_text

NUM_CONNECTIONS = 4

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository."""

    size: int  # bytes
    sha256: str | None  # of a file in the large-file storage; None: a small one, kept in git


@dataclass(frozen=True, slots=True)
class HubCommit:
    """One commit of a repository of a hub, and where its files go on this machine."""

    name: str  # what messages call it
    repository: str  # `org/name`
    commit: str  # 40 hex digits
    endpoint: str
    cache: Path

    @property
    def folder(self) -> Path:
        """Where its files are found."""
        return self._place / "snapshots" / self.commit

    @property
    def _place(self) -> Path:
        return self.cache / repo_folder_name(repo_id=self.repository, repo_type="model")

    def download(self, files: Mapping[str, HubFile]) -> None:
        """Have all of the files: the small ones first, so that weights in the cache always have their configuration.

        Raises:
            NoRoom: the disk has not enough room; nothing was downloaded.
            MalformedFile: what arrived is not what the hub announced.
            Exception: whatever huggingface_hub raises.
        """
        missing = {name: file for name, file in files.items() if not (self.folder / name).exists()}
        if not missing:
            return
        large = {name: file for name, file in missing.items() if file.sha256 is not None}
        here = sum(self._bytes_here(file) for file in large.values())
        self._check_room(sum(file.size for file in missing.values()), here)
        for name in missing:
            if name not in large:
                self._link(name)
        if large:
            progress = DownloadProgress(self.name, sum(file.size for file in large.values()), here)
            self._download_together(large, progress)
            progress.finish()

    def remember(self, revision: str) -> None:
        """Let the cache know that a branch or tag stands for this commit, for when the hub is away."""
        reference = self._place / "refs" / revision
        try:
            if reference.exists() and reference.read_text() == self.commit:
                return
            reference.parent.mkdir(parents=True, exist_ok=True)
            whole = reference.with_name(f"{reference.name}.{self.commit[:8]}.tmp")
            whole.write_text(self.commit)
            whole.replace(reference)
        except OSError as error:  # a cache that is read only serves all the same
            _log.warning("the cache cannot remember a revision", name=self.name, commit=self.commit, error=str(error))

    def _check_room(self, total: int, here: int) -> None:
        """Raise NoRoom if the disk cannot take what is missing of `total` bytes."""
        needed = total - here
        place = next(path for path in (self.cache, *self.cache.parents) if path.exists())
        free = shutil.disk_usage(place).free
        if needed > free:
            already = f" ({size_text(here)} more are here already)" if here else ""
            raise NoRoom(
                self.name,
                f"the download needs {size_text(needed)}{already} and {size_text(free)} are free in {self.cache}: make "
                f"room for {size_text(needed - free)} more, or set HF_HOME to a folder on a larger disk",
            )

    def _bytes_here(self, file: HubFile) -> int:
        """Bytes of a large file that an earlier download has left."""
        assert file.sha256 is not None
        if (self._blobs / file.sha256).exists():  # of another commit
            return file.size
        partial = self._partial(file.sha256)
        return min(partial.stat().st_size, file.size) if partial.exists() else 0

    def _download_together(self, files: Mapping[str, HubFile], progress: DownloadProgress) -> None:
        with ThreadPoolExecutor(NUM_CONNECTIONS, "download") as threads:
            futures = [threads.submit(self._download_large, name, file, progress) for name, file in files.items()]
            try:
                ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in ended:
                    future.result()
            except BaseException:
                progress.stop()
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _download_large(self, name: str, file: HubFile, progress: DownloadProgress) -> None:
        assert file.sha256 is not None
        blob, partial = self._blobs / file.sha256, self._partial(file.sha256)
        lock = self.cache / ".locks" / self._place.name / f"{file.sha256}.lock"
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # the one that huggingface_hub takes
            if not blob.exists():
                self._fill(name, partial, file.size, progress)
                if _sha256(partial) != file.sha256:
                    partial.unlink()
                    raise MalformedFile(
                        f"{self.name}:{name}",
                        f"what arrived has not the SHA-256 {file.sha256} that the hub announced: it was thrown away, "
                        "start again",
                    )
                partial.replace(blob)
        self._link(name)

    def _fill(self, name: str, partial: Path, size: int, progress: DownloadProgress) -> None:
        """Add what is missing of a file."""
        if partial.exists() and partial.stat().st_size > size:
            partial.unlink()
        with partial.open("ab") as out:

            def take(piece: bytes) -> None:
                out.write(piece)
                progress.add(len(piece))

            receive(self.url_of(name), out.tell(), size, take)
            out.flush()
            os.fsync(out.fileno())  # what is called whole survives a loss of power

    def url_of(self, name: str) -> str:
        """Where the hub has a file, of this commit."""
        return hf_hub_url(self.repository, name, revision=self.commit, endpoint=self.endpoint)

    def _link(self, name: str) -> None:
        """Put a file that is here into the snapshot; get it first, if it is a small one."""
        hf_hub_download(
            self.repository,
            name,
            revision=self.commit,
            endpoint=self.endpoint,
            cache_dir=self.cache,
            tqdm_class=SilentBar,
        )

    @property
    def _blobs(self) -> Path:
        return self._place / "blobs"

    def _partial(self, sha256: str) -> Path:
        return self._blobs / f"{sha256}.incomplete"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
