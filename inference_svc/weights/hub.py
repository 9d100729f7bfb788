"""Downloads files of models and adapters from a Hugging Face hub, or takes them from its cache.

HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and the usual tokens are honoured.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from inference_svc.weights.errors import FileMissing, HubUnavailable

ADAPTER_PATTERNS = ["*.json", "*.safetensors", "*/*.json", "*/*.safetensors"]

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REFERENCE = re.compile(
    rf"(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?(?::(?P<file>[^\0:]{{1,400}}))?"
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HubReference:
    """`org/name[@revision][:file]`"""

    repository: str
    revision: str | None
    file: str | None

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "") + (f":{self.file}" if self.file else "")


def parse_hub_reference(text: str) -> HubReference | None:
    """None if the text does not have the form; names that climb (`..`) do not."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return None
    repository, revision, file = match["repository"], match["revision"], match["file"]
    if any(mark in repository for mark in ("..", "--")) or repository.endswith(".git"):
        return None
    if revision is not None and not _is_plain(revision):
        return None
    if file is not None and not _is_plain(file):
        return None
    return HubReference(repository, revision, file)


def download_gguf(reference: HubReference) -> Path:
    """The file that is named, or the only GGUF file of the repository.

    Raises:
        FileMissing: the repository, revision or file does not exist, or there are several GGUF files.
        HubUnavailable: the hub cannot be reached, or refuses.
    """
    file = reference.file or _only_gguf(reference)
    if not file.endswith(".gguf"):
        raise FileMissing(str(reference), f"{file!r} is not a .gguf file")
    return Path(
        _asked(
            reference,
            lambda: hf_hub_download(
                reference.repository, file, revision=reference.revision, endpoint=_endpoint(), cache_dir=_cache()
            ),
        )
    )


def download_adapter(reference: HubReference) -> Path:
    """The folder with the configs and weights of a repository.

    Raises:
        FileMissing: the repository or revision does not exist, or holds no such files.
        HubUnavailable: the hub cannot be reached, or refuses.
    """
    folder = Path(
        _asked(
            reference,
            lambda: snapshot_download(
                reference.repository,
                revision=reference.revision,
                allow_patterns=ADAPTER_PATTERNS,
                endpoint=_endpoint(),
                cache_dir=_cache(),
            ),
        )
    )
    if not folder.is_dir():
        raise FileMissing(str(reference), "the repository holds no .json or .safetensors file")
    return folder


def _only_gguf(reference: HubReference) -> str:
    api = HfApi(endpoint=_endpoint())
    files = _asked(reference, lambda: api.list_repo_files(reference.repository, revision=reference.revision))
    found = sorted(file for file in files if file.endswith(".gguf"))
    if not found:
        raise FileMissing(str(reference), "the repository holds no .gguf file")
    if len(found) > 1:
        more = f" and {len(found) - 20} more" if len(found) > 20 else ""
        raise FileMissing(
            str(reference),
            f"the repository holds {len(found)} .gguf files, name one as {reference}:{found[0]}; "
            f"it has {', '.join(found[:20])}{more}",
        )
    return found[0]


def _asked(reference: HubReference, question: Callable[[], T]) -> T:
    """The answer, or a sentence about why there is none."""
    name, hub = str(reference), _endpoint() or "https://huggingface.co"
    try:
        return question()
    except GatedRepoError as error:
        raise HubUnavailable(name, f"{hub} asks for a login with access to it: set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise FileMissing(name, f"{hub} has no such repository, or it is private: set HF_TOKEN for those") from error
    except RevisionNotFoundError as error:
        raise FileMissing(name, f"the repository has no revision {reference.revision or 'main'!r}") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise HubUnavailable(
            name,
            f"{hub} cannot be reached, or HF_HUB_OFFLINE is set, and the cache does not have it; "
            "a cached model is found by its full name, org/name:file.gguf",
        ) from error
    except EntryNotFoundError as error:
        raise FileMissing(name, f"the repository has no file {reference.file!r}") from error
    # The libraries below raise what they like: connection, URL, JSON, disk and storage errors without a common parent.
    except Exception as error:
        raise HubUnavailable(name, f"{hub} cannot be used: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _is_plain(path: str) -> bool:
    return all(part not in ("", ".", "..") for part in path.split("/")) and "\\" not in path


def _endpoint() -> str | None:
    """Read when it is needed; the library reads its own once, at import."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _cache() -> Path | None:
    """As the library finds it, but read when it is needed."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    if home := os.environ.get("HF_HOME"):
        return Path(home) / "hub"
    return None
