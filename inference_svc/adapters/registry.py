"""The adapters in memory: who holds which version, what is active, and how much room is left.

Files are read outside; under the lock there are only dictionaries, so that neither loads nor requests wait for a disk,
nor for a load that rests: no tensor is touched there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from threading import RLock

from inference_svc.adapters.bank import AdapterBank
from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape
from inference_svc.adapters.choosing import ResolvedSelection, mixture_of, version_named, versions_of
from inference_svc.adapters.loading import Loaded
from inference_svc.adapters.residency import (
    ResidencyEventKind,
    ResidencyLog,
    ResidencySnapshot,
    ResidencyWatch,
)
from inference_svc.adapters.resident import ActiveSet, Lease, LoadItem, ResidentAdapter, Version
from inference_svc.adapters.room import evicted_for_room, total_bytes
from inference_svc.adapters.selection import (
    ActiveSelection,
    BaseSelection,
    LoraSelection,
    Selection,
    XLoraSelection,
)
from inference_svc.errors import (
    AdapterExists,
    AdapterInUse,
    DigestMismatch,
    InvalidRequest,
)

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")  # as in the contract


class AdapterRegistry:
    """Thread-safe; every method takes effect at once or not at all."""

    def __init__(
        self, base: BaseModelShape, limits: AdapterLimits, prepare: Callable[[AdapterBank], AdapterBank] | None = None
    ) -> None:
        """`prepare` is called in the thread that loads; what it returns is kept and run instead of what was loaded."""
        self._prepare = prepare
        self.base = base
        self.limits = limits
        self._lock = RLock()
        self._versions: dict[str, Version] = {}
        self._retired: set[Version] = set()  # unloaded or replaced, but requests still run with them
        self._selection: ResolvedSelection = BaseSelection()
        self._generation = 0
        self._uses = 0
        self._log = ResidencyLog()

    def check_load(self, name: str, *, replace: bool, expected_digest: str | None = None) -> None:
        """Refuse what `load` would refuse whatever the files hold; to be asked before they are read.

        Raises:
            InvalidRequest: the name cannot be a name, or a digest is expected without `replace`.
            AdapterExists: the name is taken and `replace` is not set.
            DigestMismatch: the resident version is not the expected one.
        """
        _check_name(name)
        if expected_digest is not None and not replace:
            raise InvalidRequest("expected_digest", "a digest is expected of what is replaced: set `replace` with it")
        with self._lock:
            if name in self._versions and not replace:
                raise AdapterExists(
                    f"an adapter `{name}` is already loaded (digest {self._versions[name].loaded.digest[:12]}); "
                    "set `replace` or choose another name",
                    adapter=name,
                )
            _check_digest(name, self._versions.get(name), expected_digest)

    def load(
        self,
        name: str,
        loaded: Loaded,
        *,
        source: str,
        replace: bool = False,
        expected_digest: str | None = None,
        pinned: bool = False,
    ) -> ResidentAdapter:
        """Make an adapter resident under a name; one that was pinned stays pinned when it is replaced.

        Raises:
            InvalidRequest, AdapterExists, DigestMismatch: as `check_load`.
            AdapterInUse: it would change the kind of an adapter in the active default.
            LimitReached: no room.
        """
        loaded = self._prepared(name, loaded)
        with self._lock:
            self.check_load(name, replace=replace, expected_digest=expected_digest)
            version = self._new_version(name, loaded, source, "", pinned=pinned)
            versions = self._versions | {name: version}
            self._check_active(versions, self._selection)
            self._commit(versions, self._selection, staying={name})
            return version.described()

    def _prepared(self, name: str, loaded: Loaded) -> Loaded:
        """What is to be kept of what was loaded: what is here already if that is the same."""
        present = self._versions.get(name)
        if present is not None and present.loaded.digest == loaded.digest:
            return present.loaded
        return loaded if self._prepare is None else dataclasses.replace(loaded, bank=self._prepare(loaded.bank))

    def load_all(
        self, items: Iterable[LoadItem], *, ordering: str, activate: Selection | None
    ) -> tuple[tuple[ResidentAdapter, ...], ActiveSet]:
        """Make what an ordering brings resident, and the active default if told so.

        What an earlier revision of the same ordering brought and this one does not, goes, unless it is still in the
        active default. An adapter of unchanged content stays as it is, with the new revision as its ordering.

        Raises:
            AdapterExists: a name belongs to somebody else.
            InvalidRequest, AdapterNotFound, AdapterWrongKind, AdapterInUse, LimitReached: as `load` and `activate`.
        """
        listed = [dataclasses.replace(item, loaded=self._prepared(item.name, item.loaded)) for item in items]
        for item in listed:
            _check_name(item.name)
        owner = _owner(ordering)
        with self._lock:
            selection = self._selection if activate is None else _resolved(activate)
            versions = {
                name: version
                for name, version in self._versions.items()
                if _owner(version.ordering) != owner or name in _names(selection)
            }
            kept: list[Version] = []
            for item in listed:
                present = self._versions.get(item.name)
                if present is not None and _owner(present.ordering) != owner:
                    by = f"brought by {present.ordering}" if present.ordering else f"loaded from {present.source}"
                    raise AdapterExists(
                        f"{ordering} names an adapter `{item.name}`, but one is already {by}: unload that first",
                        adapter=item.name,
                    )
                if present is not None and present.loaded.digest == item.loaded.digest:
                    versions[item.name] = present
                    kept.append(present)
                else:
                    versions[item.name] = self._new_version(item.name, item.loaded, item.source, ordering)
            self._check_active(versions, selection, changes=activate is not None)
            self._commit(versions, selection, staying={item.name for item in listed})
            for version in kept:
                if version.ordering != ordering:
                    version.ordering = ordering
                    self._log.record(ResidencyEventKind.REPLACED, version.described())
            if activate is not None:
                self._set_active(selection)
            described = {item.name: versions[item.name].described() for item in listed}
            return tuple(described.values()), self.active

    def unload(self, name: str, *, expected_digest: str | None = None) -> ResidentAdapter:
        """Take an adapter away from later requests; those that run keep it.

        Raises:
            AdapterNotFound: it is not resident.
            DigestMismatch: the resident version is not the expected one.
            AdapterInUse: it is in the active default.
        """
        with self._lock:
            version = version_named(self._versions, name)
            _check_digest(name, version, expected_digest)
            if name in _names(self._selection):
                raise AdapterInUse(
                    f"adapter `{name}` is in the active default: activate another set first", adapter=name
                )
            self._commit({other: kept for other, kept in self._versions.items() if other != name}, self._selection)
            return version.described()

    def pin(self, name: str, pinned: bool) -> ResidentAdapter:
        """Keep an adapter from being evicted, or let it be evicted again.

        Raises:
            AdapterNotFound: it is not resident.
        """
        with self._lock:
            version = version_named(self._versions, name)
            if version.pinned != pinned:
                version.pinned = pinned
                kind = ResidencyEventKind.PINNED if pinned else ResidencyEventKind.UNPINNED
                self._log.record(kind, version.described())
            return version.described()

    def watch(self, resume_token: str | None, on_ready: Callable[[], None]) -> ResidencyWatch:
        """Be told of every change from here on, or from the token on; `on_ready` is called from any thread.

        Raises:
            InvalidRequest: the token is not one of ours.
        """
        with self._lock:
            return self._log.watch(resume_token, self._snapshot, on_ready, self._end_watch)

    def get(self, name: str) -> ResidentAdapter:
        """One resident adapter.

        Raises:
            AdapterNotFound: it is not resident.
        """
        with self._lock:
            return version_named(self._versions, name).described()

    def list_all(self) -> list[ResidentAdapter]:
        """All resident adapters by name."""
        with self._lock:
            return [self._versions[name].described() for name in sorted(self._versions)]

    @property
    def active(self) -> ActiveSet:
        """The active default."""
        with self._lock:
            return ActiveSet(self._selection, self._generation)

    def activate(self, selection: Selection) -> ActiveSet:
        """Replace the active default for later requests.

        Raises:
            AdapterNotFound, AdapterWrongKind: a name does not fit; the default stays as it was.
            InvalidRequest: bad weights, or `selection` is the active default itself.
        """
        resolved = _resolved(selection)
        with self._lock:
            versions_of(self._versions, resolved, "selection")
            self._set_active(resolved)
            return self.active

    def lease(self, selection: Selection) -> Lease:
        """Borrow what a request asks for; the caller releases it when the request ends.

        Raises:
            AdapterNotFound, AdapterWrongKind, InvalidRequest: nothing is borrowed.
        """
        with self._lock:
            resolved = self._selection if isinstance(selection, ActiveSelection) else _copied(selection)
            found = versions_of(self._versions, resolved, "adapters")
            mixture, applied = mixture_of(found, resolved)
            for version in found:
                version.leases += 1
                version.last_use_time = datetime.now(UTC)
                version.last_use = self._next_use()
        return Lease(mixture, applied, lambda: self._give_back(found))

    @property
    def held_bytes(self) -> int:
        """Bytes of all versions, those included that only running requests still hold."""
        with self._lock:
            return total_bytes([*self._versions.values(), *self._retired])

    @property
    def event_counts(self) -> dict[ResidencyEventKind, int]:
        """How often each kind of event happened since the start."""
        with self._lock:
            return dict(self._log.counts)

    @property
    def resident_versions(self) -> int:
        """Versions that a request can choose."""
        with self._lock:
            return len(self._versions)

    @property
    def retired_versions(self) -> int:
        """Versions that only running requests still hold."""
        with self._lock:
            return len(self._retired)

    def _give_back(self, found: Sequence[Version]) -> None:
        with self._lock:
            for version in found:
                version.leases -= 1
                if version.leases == 0:
                    self._retired.discard(version)

    def _new_version(self, name: str, loaded: Loaded, source: str, ordering: str, *, pinned: bool = False) -> Version:
        before = self._versions.get(name)
        was_pinned = before is not None and before.pinned
        now = datetime.now(UTC)
        return Version(name, loaded, source, ordering, now, pinned or was_pinned, last_use=self._next_use())

    def _next_use(self) -> int:
        self._uses += 1
        return self._uses

    def _commit(
        self, versions: dict[str, Version], selection: ResolvedSelection, staying: Collection[str] = ()
    ) -> None:
        """Make `versions` the resident ones, less what must go to make room; and tell the watchers.

        Raises:
            LimitReached: nothing has changed.
        """
        protected = {*staying, *_names(selection)}
        evicted = evicted_for_room(versions, self._retired_after, self.limits, protected)
        before = self._versions
        after = {name: version for name, version in versions.items() if name not in evicted}
        self._retired = self._retired_after(after)
        self._versions = after
        for name in sorted(before.keys() | versions.keys()):
            old, new = before.get(name), versions.get(name)
            if new is None:
                assert old is not None
                self._log.record(ResidencyEventKind.UNLOADED, old.described())
            elif name in evicted:
                self._log.record(ResidencyEventKind.EVICTED, new.described())
            elif new is not old:
                kind = ResidencyEventKind.LOADED if old is None else ResidencyEventKind.REPLACED
                self._log.record(kind, new.described())

    def _set_active(self, selection: ResolvedSelection) -> None:
        self._selection = selection
        self._generation += 1
        self._log.record(ResidencyEventKind.ACTIVATED, active=self.active)

    def _snapshot(self) -> ResidencySnapshot:
        return ResidencySnapshot(tuple(self.list_all()), self.active, self._log.generation)

    def _end_watch(self, watch: ResidencyWatch) -> None:
        with self._lock:
            self._log.end(watch)

    def _retired_after(self, versions: Mapping[str, Version]) -> set[Version]:
        staying = set(versions.values())
        leaving = {version for version in self._versions.values() if version.leases and version not in staying}
        return self._retired | leaving

    def _check_active(
        self, versions: Mapping[str, Version], selection: ResolvedSelection, *, changes: bool = False
    ) -> None:
        """The active default must stand after a change; a default that stays must keep the kinds of its names."""
        if not changes:
            for name in _names(selection):
                before, after = self._versions[name].loaded.kind, versions[name].loaded.kind
                if before is not after:
                    raise AdapterInUse(
                        f"adapter `{name}` is in the active default as {before.value}, it cannot be replaced by "
                        f"{after.value}: activate another set first",
                        adapter=name,
                    )
        versions_of(versions, selection, "selection")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            "adapter_id",
            f"{name[:140]!r} cannot be an adapter's name: 1 to 128 letters, digits, `.`, `_` or `-`, "
            "beginning and ending with a letter or digit",
        )


def _check_digest(name: str, version: Version | None, expected: str | None) -> None:
    """Compare before set: whoever read an older version must look again."""
    if expected is None:
        return
    if version is None:
        raise DigestMismatch(
            f"adapter `{name}` is not loaded, expected was digest {expected[:12]}: load it without `expected_digest`",
            adapter=name,
        )
    if version.loaded.digest != expected:
        digest = version.loaded.digest
        raise DigestMismatch(
            f"adapter `{name}` has digest {digest[:12]}, expected was {expected[:12]}: somebody else has replaced it; "
            "look at it again",
            adapter=name,
            digest=digest,
        )


def _owner(ordering: str) -> str:
    """An ordering's name without its revision."""
    return ordering.partition("@")[0]


def _names(selection: ResolvedSelection) -> frozenset[str]:
    if isinstance(selection, LoraSelection):
        return frozenset(selection.weights)
    return frozenset([selection.name]) if isinstance(selection, XLoraSelection) else frozenset()


def _resolved(selection: Selection) -> ResolvedSelection:
    if isinstance(selection, ActiveSelection):
        raise InvalidRequest("selection", "the active default cannot be set to itself: name what becomes active")
    return _copied(selection)


def _copied(selection: ResolvedSelection) -> ResolvedSelection:
    """A selection that the caller cannot change later."""
    return LoraSelection(dict(selection.weights)) if isinstance(selection, LoraSelection) else selection
