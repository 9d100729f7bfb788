"""Models and adapters from a hub: what would not run is refused before it is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from inference_svc.weights.errors import FileMissing, HubUnavailable, TooLarge
from inference_svc.weights.hub import HubListing, open_listing
from inference_svc.weights.hub_reference import HubReference
from inference_svc.weights.hub_source import hub_source
from inference_svc.weights.listing import size_text
from inference_svc.weights.locate import AdapterFiles, ModelCheck
from inference_svc.weights.model_choice import choose_model

T = TypeVar("T")


def download_model(reference: HubReference, check: ModelCheck) -> Path:
    """The .gguf file, the first part of one, or the folder of a checkpoint in safetensors.

    Raises:
        FileMissing: the repository, revision or file does not exist, or several models could be meant.
        UnsupportedFile: it is of a kind or an architecture that is not supported.
        MalformedFile: a header or config is broken, or what arrived is not what was announced.
        NoRoom: the disk has not enough room.
        HubUnavailable: the hub refuses; or it is away, and the cache does not have the model.
    """
    listing = open_listing(reference)
    chosen = _or_away(listing, lambda: choose_model(listing, reference.file))
    if not listing.has(chosen.files):
        check(hub_source(listing, chosen))
    listing.download(chosen.files)
    listing.remember()
    return listing.folder / (chosen.first_part or "")


def download_adapter(reference: HubReference, needed: AdapterFiles, max_bytes: int) -> Path:
    """The folder of an adapter.

    Args:
        reference: a repository.
        needed: says which of its files are downloaded; what it raises is raised.
        max_bytes: of these files together.

    Raises:
        TooLarge: they have more.
        FileMissing, NoRoom, MalformedFile, HubUnavailable: as for `download_model`.
    """
    listing = open_listing(reference)
    files = list(_or_away(listing, lambda: needed(listing)))
    total = sum(listing.sizes[file] for file in files)
    if total > max_bytes:
        raise TooLarge(
            listing.name,
            f"its {len(files)} files have {size_text(total)}, more than the {size_text(max_bytes)} that adapters may "
            "take: raise --max-adapter-bytes",
        )
    listing.download(files)
    listing.remember()
    return listing.folder


def _or_away(listing: HubListing, choose: Callable[[], T]) -> T:
    """What the cache lacks may well be on the hub, which is away: that is no fault of the reference."""
    try:
        return choose()
    except FileMissing as error:
        if not listing.away:
            raise
        raise HubUnavailable(listing.name, f"{listing.away}, and {error.sentence}") from error
