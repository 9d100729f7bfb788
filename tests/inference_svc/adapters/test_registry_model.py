"""The registry against a plain dictionary: any sequence of loads, unloads, pins, leases, activations and evictions."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape
from inference_svc.adapters.lora import LoadedLora, load_lora
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.residency import ResidencyEvent, ResidencyEventKind, ResidencySnapshot
from inference_svc.adapters.resident import Lease, LoadItem
from inference_svc.adapters.selection import ActiveSelection, BaseSelection, LoraSelection, Selection
from inference_svc.errors import AdapterExists, AdapterInUse, AdapterNotFound, DigestMismatch, LimitReached
from tests.inference_svc.adapters.conftest import AdapterWriter

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
CONTENTS = st.integers(0, 3)
LIMIT = 4


def contents() -> tuple[BaseModelShape, list[LoadedLora]]:
    base = BaseModelShape("llama", "", 8, {"model.layers.0.self_attn.q_proj": (8, 8)}, True, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        write = AdapterWriter(Path(folder), base)
        return base, [load_lora(write.lora(f"v{seed}", seed=seed), base, AdapterLimits()) for seed in range(4)]


BASE, LOADED = contents()


class RegistryMachine(RuleBasedStateMachine):
    """`resident` maps a name to its digest; everything else follows from what was done."""

    evict = True

    def __init__(self) -> None:
        super().__init__()
        self.registry = AdapterRegistry(BASE, AdapterLimits(max_adapters=LIMIT, evict=self.evict))
        self.resident: dict[str, str] = {}
        self.pinned: set[str] = set()
        self.recency: list[str] = []  # least recently used first
        self.active: dict[str, float] = {}
        self.leases: list[tuple[Lease, dict[str, str]]] = []  # and the digests that they began with
        self.versions: dict[str, int] = {}  # counts replacements, to tell retired versions from resident ones
        self.held: list[tuple[str, int]] = []  # (name, version) once for each lease
        self.watch = self.registry.watch(None, lambda: None)
        self.seen: dict[str, str] = {}
        self.seen_active: Selection = BaseSelection()

    def retired(self) -> set[tuple[str, int]]:
        return {held for held in self.held if held[0] not in self.resident or self.versions[held[0]] != held[1]}

    def touch(self, name: str) -> None:
        self.recency = [other for other in self.recency if other != name] + [name]

    def forget(self, name: str) -> None:
        del self.resident[name]
        self.pinned.discard(name)
        self.recency.remove(name)

    def is_held(self, name: str) -> bool:
        return (name, self.versions[name]) in self.held

    def evictable(self, keep: set[str]) -> list[str]:
        free = [n for n in self.recency if n not in self.pinned and n not in self.active and n not in keep]
        return [name for name in free if not self.is_held(name)] if self.evict else []

    @rule(name=NAMES, content=CONTENTS, replace=st.booleans(), pinned=st.booleans(), expect=st.none() | CONTENTS)
    def load(self, name: str, content: int, replace: bool, pinned: bool, expect: int | None) -> None:
        expected = None if expect is None or not replace else LOADED[expect].digest
        loaded = LOADED[content]

        def call() -> None:
            self.registry.load(name, loaded, source="s", replace=replace, expected_digest=expected, pinned=pinned)

        if name in self.resident and not replace:
            with pytest.raises(AdapterExists):
                call()
            return
        if expected is not None and self.resident.get(name) != expected:
            with pytest.raises(DigestMismatch):
                call()
            return
        after = set(self.resident) | {name}
        # What is replaced while a request holds it stays in memory, retired.
        num_retired = len(self.retired()) + (name in self.resident and self.is_held(name))
        excess = len(after) + num_retired - LIMIT
        gone = self.evictable({name})[: max(0, excess)]
        if excess > len(gone):
            with pytest.raises(LimitReached):
                call()
            return
        call()
        for other in gone:
            self.forget(other)
        self.resident[name] = loaded.digest
        self.versions[name] = self.versions.get(name, 0) + 1
        if pinned:
            self.pinned.add(name)
        self.touch(name)

    @rule(name=NAMES, expect=st.none() | CONTENTS)
    def unload(self, name: str, expect: int | None) -> None:
        expected = None if expect is None else LOADED[expect].digest
        if name not in self.resident:
            with pytest.raises(AdapterNotFound):
                self.registry.unload(name, expected_digest=expected)
        elif expected is not None and self.resident[name] != expected:
            with pytest.raises(DigestMismatch):
                self.registry.unload(name, expected_digest=expected)
        elif name in self.active:
            with pytest.raises(AdapterInUse):
                self.registry.unload(name, expected_digest=expected)
        else:
            assert self.registry.unload(name, expected_digest=expected).digest == self.resident[name]
            self.forget(name)

    @rule(name=NAMES, pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        if name not in self.resident:
            with pytest.raises(AdapterNotFound):
                self.registry.pin(name, pinned)
            return
        assert self.registry.pin(name, pinned).pinned is pinned
        self.pinned = self.pinned | {name} if pinned else self.pinned - {name}

    @rule(weights=st.dictionaries(NAMES, st.sampled_from([1.0, -0.5, 0.0]), max_size=3))
    def activate(self, weights: dict[str, float]) -> None:
        selection: Selection = LoraSelection(weights) if weights else BaseSelection()
        generation = self.registry.active.generation
        if set(weights) <= set(self.resident):
            assert self.registry.activate(selection).generation == generation + 1
            self.active = weights
        else:
            with pytest.raises(AdapterNotFound):
                self.registry.activate(selection)
            assert self.registry.active.generation == generation

    @rule(weights=st.dictionaries(NAMES, st.sampled_from([1.0, 2.0]), max_size=2), of_default=st.booleans())
    def lease(self, weights: dict[str, float], of_default: bool) -> None:
        if of_default:
            selection: Selection = ActiveSelection()
            wanted = self.active
        else:
            wanted, selection = weights, (LoraSelection(weights) if weights else BaseSelection())
        if not set(wanted) <= set(self.resident):
            with pytest.raises(AdapterNotFound):
                self.registry.lease(selection)
            return
        lease = self.registry.lease(selection)
        self.leases.append((lease, {name: self.resident[name] for name in wanted}))
        for name in wanted:
            self.held.append((name, self.versions[name]))
            self.touch(name)
        lease.held = [(name, self.versions[name]) for name in wanted]  # type: ignore[attr-defined]

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease, _ = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        lease.release()
        lease.release()
        for held in lease.held:  # type: ignore[attr-defined]
            self.held.remove(held)

    @invariant()
    def agrees(self) -> None:
        described = {adapter.name: adapter for adapter in self.registry.list_all()}
        assert {name: adapter.digest for name, adapter in described.items()} == self.resident
        assert {name for name, adapter in described.items() if adapter.pinned} == self.pinned
        for name, adapter in described.items():
            assert adapter.active_requests == self.held.count((name, self.versions[name]))
        assert self.registry.retired_versions == len(self.retired())
        assert len(described) + self.registry.retired_versions <= LIMIT
        for lease, digests in self.leases:
            assert {adapter.name: adapter.digest for adapter in lease.applied} == digests

    @invariant()
    def a_watcher_who_follows_the_events_knows_what_is_resident(self) -> None:
        gone = (ResidencyEventKind.UNLOADED, ResidencyEventKind.EVICTED)
        for update in self.watch.take():
            match update.content:
                case ResidencySnapshot(adapters, active, _):
                    self.seen = {adapter.name: adapter.digest for adapter in adapters}
                    self.seen_active = active.selection
                case ResidencyEvent(kind=kind, adapter=adapter, active=active):
                    if active is not None:
                        self.seen_active = active.selection
                    if adapter is not None:
                        self.seen.pop(adapter.name, None)
                        if kind not in gone:
                            self.seen[adapter.name] = adapter.digest
        assert self.seen == self.resident
        assert self.seen_active == (LoraSelection(self.active) if self.active else BaseSelection())


class UnevictingMachine(RegistryMachine):
    """The same without eviction: a limit refuses."""

    evict = False


class OrderingMachine(RegistryMachine):
    """With orderings that bring and take adapters beside all the rest."""

    evict = False

    @rule(items=st.dictionaries(st.sampled_from(["x", "y"]), CONTENTS, max_size=2))
    def apply(self, items: dict[str, int]) -> None:
        loads = [LoadItem(name, LOADED[content], "s") for name, content in items.items()]
        before = self.registry.active
        try:
            adapters, active = self.registry.load_all(loads, ordering="orderings/o@1", activate=None)
        except LimitReached:
            return
        assert active == before
        assert {adapter.name for adapter in adapters} == set(items)
        for name in [name for name in self.resident if name in "xy" and name not in items]:
            self.forget(name)
        for name, content in items.items():
            if self.resident.get(name) != LOADED[content].digest:
                self.resident[name] = LOADED[content].digest
                self.versions[name] = self.versions.get(name, 0) + 1
                self.touch(name)


QUICK = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = QUICK
TestRegistryWithoutEviction = UnevictingMachine.TestCase
TestRegistryWithoutEviction.settings = QUICK
TestRegistryWithOrderings = OrderingMachine.TestCase
TestRegistryWithOrderings.settings = QUICK
