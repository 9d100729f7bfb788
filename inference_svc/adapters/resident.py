"""What the registry tells about a resident adapter, and what a request borrows from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from threading import Lock

from inference_svc.adapters.loading import Loaded
from inference_svc.adapters.selection import AdapterKind, AppliedAdapter, Mixture, Selection


@dataclass(frozen=True, slots=True)
class ResidentAdapter:
    """One adapter as it was at one moment; the fields are those of `loramux.inference.v1.Adapter`."""

    name: str
    kind: AdapterKind
    digest: str  # SHA-256 in hex
    source: str
    rank: int  # the largest
    target_modules: tuple[str, ...]
    num_layers: int  # linear layers that it changes
    experts: tuple[str, ...]  # X-LoRA only, in classifier order
    size_bytes: int
    active_requests: int
    load_time: datetime  # UTC
    ordering: str  # `orderings/{id}@{revision}`, or empty
    pinned: bool  # never evicted
    last_use_time: datetime  # UTC; when a request last chose it, or it was loaded


@dataclass(frozen=True, slots=True)
class ActiveSet:
    """The active default, never an `ActiveSelection`."""

    selection: Selection
    generation: int  # grows by one with every activation


@dataclass(frozen=True, slots=True, eq=False)
class LoadItem:
    """A loaded adapter that wants a name."""

    name: str
    loaded: Loaded
    source: str


@dataclass(slots=True, eq=False)
class Version:
    """One resident version of a name; only the registry touches it, under its lock."""

    name: str
    loaded: Loaded
    source: str
    ordering: str
    load_time: datetime
    pinned: bool = False
    leases: int = 0
    last_use: int = 0  # the registry's count of loads and leases; the smallest was used longest ago
    last_use_time: datetime | None = None

    def described(self) -> ResidentAdapter:
        """The version as it is now."""
        loaded = self.loaded
        return ResidentAdapter(
            name=self.name,
            kind=loaded.kind,
            digest=loaded.digest,
            source=self.source,
            rank=loaded.rank,
            target_modules=loaded.target_modules,
            num_layers=len(loaded.bank.deltas),
            experts=loaded.bank.experts if loaded.kind is AdapterKind.XLORA else (),
            size_bytes=loaded.nbytes,
            active_requests=self.leases,
            load_time=self.load_time,
            ordering=self.ordering,
            pinned=self.pinned,
            last_use_time=self.last_use_time or self.load_time,
        )

    def applied(self, weight: float | None) -> AppliedAdapter:
        """What a response says of it."""
        experts = self.loaded.bank.experts if self.loaded.kind is AdapterKind.XLORA else ()
        return AppliedAdapter(self.name, self.loaded.kind, self.loaded.digest, weight, experts, self.ordering)


class Lease:
    """The exact adapter versions that a request runs with, until it is released.

    Releasing gives the versions back to the registry's count; whoever still holds `mixture` keeps its tensors alive.
    """

    def __init__(self, mixture: Mixture, applied: tuple[AppliedAdapter, ...], on_release: Callable[[], None]) -> None:
        self.mixture = mixture
        self.applied = applied
        self._lock = Lock()
        self._on_release: list[Callable[[], None]] = [on_release]

    def release(self) -> None:
        """Give the versions back; a second call does nothing."""
        with self._lock:
            callbacks, self._on_release = self._on_release, []
        for callback in callbacks:
            callback()
