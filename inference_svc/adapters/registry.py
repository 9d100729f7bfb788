"""The adapters in memory: who holds which version, what is active, and how much room is left.

Files are read outside; under the lock there are only dictionaries, so that neither loads nor requests wait for a disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from threading import RLock

from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape
from inference_svc.adapters.choosing import ResolvedSelection, mixture_of, version_named, versions_of
from inference_svc.adapters.loading import Loaded
from inference_svc.adapters.resident import ActiveSet, Lease, LoadItem, ResidentAdapter, Version
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
    InvalidRequest,
    LimitReached,
)

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")  # as in the contract


class AdapterRegistry:
    """Thread-safe; every method takes effect at once or not at all."""

    def __init__(self, base: BaseModelShape, limits: AdapterLimits) -> None:
        self.base = base
        self.limits = limits
        self._lock = RLock()
        self._versions: dict[str, Version] = {}
        self._retired: set[Version] = set()  # unloaded or replaced, but requests still run with them
        self._selection: ResolvedSelection = BaseSelection()
        self._generation = 0

    def load(
        self, name: str, loaded: Loaded, *, source: str, replace: bool = False, ordering: str = ""
    ) -> ResidentAdapter:
        """Make an adapter resident under a name.

        Raises:
            InvalidRequest: the name cannot be a name.
            AdapterExists: the name is taken and `replace` is not set.
            AdapterInUse: it would change the kind of an adapter in the active default.
            LimitReached: no room.
        """
        _check_name(name)
        with self._lock:
            if name in self._versions and not replace:
                raise AdapterExists(
                    f"an adapter `{name}` is already loaded (digest {self._versions[name].loaded.digest[:12]}); "
                    "set `replace` or choose another name",
                    adapter=name,
                )
            versions = self._versions | {name: Version(name, loaded, source, ordering, datetime.now(UTC))}
            self._check_active(versions, self._selection)
            self._check_room(versions)
            self._commit(versions)
            return versions[name].described()

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
        listed = list(items)
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
                    now = datetime.now(UTC)
                    versions[item.name] = Version(item.name, item.loaded, item.source, ordering, now)
            self._check_active(versions, selection, changes=activate is not None)
            self._check_room(versions)
            for version in kept:
                version.ordering = ordering
            self._commit(versions)
            if activate is not None:
                self._selection = selection
                self._generation += 1
            described = {item.name: versions[item.name].described() for item in listed}
            return tuple(described.values()), self.active

    def unload(self, name: str) -> ResidentAdapter:
        """Take an adapter away from later requests; those that run keep it.

        Raises:
            AdapterNotFound: it is not resident.
            AdapterInUse: it is in the active default.
        """
        with self._lock:
            version = version_named(self._versions, name)
            if name in _names(self._selection):
                raise AdapterInUse(
                    f"adapter `{name}` is in the active default: activate another set first", adapter=name
                )
            self._commit({other: kept for other, kept in self._versions.items() if other != name})
            return version.described()

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
            self._selection = resolved
            self._generation += 1
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
        return Lease(mixture, applied, lambda: self._give_back(found))

    @property
    def held_bytes(self) -> int:
        """Bytes of all versions, those included that only running requests still hold."""
        with self._lock:
            return _total_bytes([*self._versions.values(), *self._retired])

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

    def _commit(self, versions: dict[str, Version]) -> None:
        self._retired = self._retired_after(versions)
        self._versions = versions

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

    def _check_room(self, versions: Mapping[str, Version]) -> None:
        retired = self._retired_after(versions)
        every = [*versions.values(), *retired]
        still = f", {len(retired)} of them unloaded but still in use" if retired else ""
        if len(every) > self.limits.max_adapters:
            raise LimitReached(
                f"{len(every)} adapters{still}, the limit is {self.limits.max_adapters}: unload some first",
                limit=str(self.limits.max_adapters),
            )
        size = _total_bytes(every)
        if size > self.limits.max_bytes:
            raise LimitReached(
                f"{len(every)} adapters{still} would take {size} bytes, the limit is {self.limits.max_bytes}: "
                "unload some first",
                limit=str(self.limits.max_bytes),
            )


def _total_bytes(versions: Iterable[Version]) -> int:
    """Versions that share their tensors count once."""
    return sum({id(version.loaded): version.loaded.nbytes for version in versions}.values())


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            "adapter_id",
            f"{name[:140]!r} cannot be an adapter's name: 1 to 128 letters, digits, `.`, `_` or `-`, "
            "beginning and ending with a letter or digit",
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
