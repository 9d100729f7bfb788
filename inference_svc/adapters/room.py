"""Room for adapters: what would exceed a limit, and which adapters may go to make room."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.resident import Version
from inference_svc.errors import LimitReached

Retired = Callable[[Mapping[str, Version]], Collection[Version]]


def evicted_for_room(
    versions: Mapping[str, Version], retired_after: Retired, limits: AdapterLimits, staying: Collection[str]
) -> tuple[str, ...]:
    """The names that must go for the rest to fit, least recently used first; empty if everything fits.

    Nothing goes unless `limits.evict` is set; then those that are neither pinned nor leased nor among `staying`.

    Args:
        versions: what is to be resident.
        retired_after: the versions that only running requests still hold once `versions` are resident.
        limits: how much there may be; retired versions count too.
        staying: names that may not go, whatever their use: the active default, and what is being loaded.

    Raises:
        LimitReached: not even that makes enough room.
    """
    kept, gone = dict(versions), []
    candidates = sorted(
        (v for v in versions.values() if limits.evict and not v.pinned and not v.leases and v.name not in staying),
        key=lambda version: version.last_use,
    )
    while (problem := _problem(kept.values(), retired_after(kept), limits)) is not None:
        if not candidates:
            raise LimitReached(f"{problem}: {_advice(versions.values(), limits)}", limit=problem.rpartition(" ")[2])
        oldest = candidates.pop(0)
        del kept[oldest.name]
        gone.append(oldest.name)
    return tuple(gone)


def total_bytes(versions: Iterable[Version]) -> int:
    """Bytes of versions; those that share their tensors count once."""
    return sum({id(version.loaded): version.loaded.nbytes for version in versions}.values())


def _problem(versions: Collection[Version], retired: Collection[Version], limits: AdapterLimits) -> str | None:
    """Which limit is exceeded."""
    every = [*versions, *retired]
    still = f", {len(retired)} of them unloaded but still in use" if retired else ""
    if len(every) > limits.max_adapters:
        return f"{len(every)} adapters{still}, the limit is {limits.max_adapters}"
    if (size := total_bytes(every)) > limits.max_bytes:
        return f"{len(every)} adapters{still} would take {size} bytes, the limit is {limits.max_bytes}"
    return None


def _advice(versions: Iterable[Version], limits: AdapterLimits) -> str:
    if not limits.evict:
        return "unload some first, or start the service with --eviction lru"
    pinned = sum(version.pinned for version in versions)
    return f"unload some first ({pinned} are pinned, the others that stay are active, in use or being loaded)"
