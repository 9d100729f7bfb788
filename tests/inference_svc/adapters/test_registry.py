"""Who holds which adapter version: activation, leases, limits, and threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from torch.overrides import TorchFunctionMode

from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape
from inference_svc.adapters.choosing import lora_selection
from inference_svc.adapters.lora import LoadedLora
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.selection import ActiveSelection, BaseSelection, LoraSelection, XLoraSelection
from inference_svc.adapters.xlora import load_xlora
from inference_svc.errors import (
    AdapterExists,
    AdapterInUse,
    AdapterNotFound,
    AdapterWrongKind,
    InvalidRequest,
    LimitReached,
)
from tests.inference_svc.adapters.conftest import AdapterWriter

MakeLora = Callable[[str, int], LoadedLora]
Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def registry(base: BaseModelShape, limits: AdapterLimits, lora: MakeLora) -> AdapterRegistry:
    """Two LoRAs, `pirate` and `verse`."""
    registry = AdapterRegistry(base, limits)
    registry.load("pirate", lora("pirate", 1), source="s")
    registry.load("verse", lora("verse", 2), source="s")
    return registry


def test_a_taken_name_is_refused_unless_replaced(registry: AdapterRegistry, lora: MakeLora) -> None:
    with pytest.raises(AdapterExists, match="`pirate` is already loaded"):
        registry.load("pirate", lora("new", 3), source="t")
    new = lora("new", 3)
    assert registry.load("pirate", new, source="t", replace=True).digest == new.digest
    assert [adapter.name for adapter in registry.list_all()] == ["pirate", "verse"]


@pytest.mark.parametrize("name", ["", "a/b", "-a", "a" * 129, "a b"])
def test_a_name_that_no_resource_can_have_is_refused(registry: AdapterRegistry, lora: MakeLora, name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be an adapter's name"):
        registry.load(name, lora("x", 1), source="s")


def test_an_unknown_name_is_told_with_the_closest_one(registry: AdapterRegistry) -> None:
    with pytest.raises(AdapterNotFound, match=r"`pirat` is loaded \(resident: pirate, verse\); did you mean `pirate`"):
        registry.lease(LoraSelection({"pirat": 1.0}))
    with pytest.raises(AdapterNotFound):
        registry.unload("nobody")


def test_activation_is_all_or_nothing(registry: AdapterRegistry) -> None:
    first = registry.activate(LoraSelection({"pirate": 1.0}))
    with pytest.raises(AdapterNotFound):
        registry.activate(LoraSelection({"verse": 1.0, "nobody": 1.0}))
    with pytest.raises(InvalidRequest):
        registry.activate(ActiveSelection())
    assert registry.active == first
    assert registry.activate(BaseSelection()).generation == first.generation + 1


def test_the_default_is_taken_when_a_request_arrives(registry: AdapterRegistry) -> None:
    registry.activate(LoraSelection({"pirate": 0.5}))
    lease = registry.lease(ActiveSelection())
    registry.activate(BaseSelection())
    assert [(adapter.name, adapter.weight) for adapter in lease.applied] == [("pirate", 0.5)]
    assert registry.lease(ActiveSelection()).applied == ()


def test_an_active_adapter_cannot_be_unloaded(registry: AdapterRegistry) -> None:
    registry.activate(LoraSelection({"pirate": 1.0}))
    with pytest.raises(AdapterInUse):
        registry.unload("pirate")
    registry.activate(BaseSelection())
    assert registry.unload("pirate").name == "pirate"


def test_a_sum_does_not_depend_on_spelling_and_zero_contributes_nothing(registry: AdapterRegistry) -> None:
    one = registry.lease(LoraSelection({"pirate": 1.0, "verse": -0.5}))
    two = registry.lease(LoraSelection({"verse": -0.5, "pirate": 1.0}))
    assert [b.bank for b in one.mixture.constant] == [b.bank for b in two.mixture.constant]
    assert [a.name for a in two.applied] == ["verse", "pirate"]
    zero = registry.lease(LoraSelection({"verse": 0.0}))
    assert zero.mixture.constant == ()
    assert [(a.name, a.weight) for a in zero.applied] == [("verse", 0.0)]


@pytest.mark.parametrize("pairs", [[("a", 1.0), ("a", 2.0)], [("a", float("nan"))], [("a", float("inf"))], []])
def test_sums_that_make_no_sense_are_refused_with_their_field(pairs: list[tuple[str, float]]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        lora_selection(pairs)
    assert caught.value.field.startswith("adapters.loras.adapters")


def test_a_nan_weight_is_refused_by_lease_and_activate(registry: AdapterRegistry) -> None:
    for call in (registry.lease, registry.activate):
        with pytest.raises(InvalidRequest, match="nan"):
            call(LoraSelection({"pirate": float("nan")}))


def test_kinds_are_not_mixed_up(
    registry: AdapterRegistry, write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits
) -> None:
    mix = load_xlora(write.xlora("mix", {"a": [Q0]}), ("a",), {Q0: 0}, base, limits)
    assert registry.load("mix", mix, source="s").experts == ("a",)
    with pytest.raises(AdapterWrongKind):
        registry.lease(LoraSelection({"mix": 1.0}))
    with pytest.raises(AdapterWrongKind):
        registry.lease(XLoraSelection("pirate"))
    lease = registry.lease(XLoraSelection("mix"))
    assert lease.mixture.xlora is not None
    assert lease.mixture.xlora.bank is mix.bank
    registry.activate(LoraSelection({"pirate": 1.0}))
    with pytest.raises(AdapterInUse, match="as lora"):
        registry.load("pirate", mix, source="s", replace=True)


class NoTensors(TorchFunctionMode):
    """Refuses every call of torch: where a load may rest."""

    def __torch_function__(self, func: object, *_: object, **__: object) -> object:
        raise AssertionError(f"{func} was called")


def test_whoever_waits_for_the_lock_waits_for_no_tensor_however_many_adapters_are_resident(
    registry: AdapterRegistry, write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits, lora: MakeLora
) -> None:
    mix = load_xlora(write.xlora("mix", {"a": [Q0]}), ("a",), {Q0: 0}, base, limits)
    new = lora("new", 3)
    with NoTensors():
        registry.load("mix", mix, source="s")
        registry.load("pirate", new, source="t", replace=True)
        registry.lease(XLoraSelection("mix")).release()
        assert registry.held_bytes == sum(adapter.size_bytes for adapter in registry.list_all())


def test_a_lease_keeps_its_version_and_releases_once(registry: AdapterRegistry, lora: MakeLora) -> None:
    old = registry.get("pirate").digest
    lease = registry.lease(LoraSelection({"pirate": 1.0}))
    assert registry.get("pirate").active_requests == 1
    before = registry.held_bytes
    registry.load("pirate", lora("new", 9), source="s", replace=True)
    assert registry.get("pirate").active_requests == 0
    assert (registry.retired_versions, lease.mixture.constant[0].bank.digest) == (1, old)
    assert registry.held_bytes > before
    lease.release()
    lease.release()
    assert (registry.retired_versions, registry.held_bytes) == (0, before)
    assert registry.get("pirate").active_requests == 0


def test_limits_count_retired_versions(base: BaseModelShape, lora: MakeLora) -> None:
    loaded = lora("a", 1)
    registry = AdapterRegistry(base, AdapterLimits(max_adapters=1, max_bytes=loaded.nbytes))
    registry.load("a", loaded, source="s")
    lease = registry.lease(LoraSelection({"a": 1.0}))
    registry.unload("a")
    with pytest.raises(LimitReached, match="unloaded but still in use"):
        registry.load("b", lora("b", 2), source="s")
    lease.release()
    registry.load("b", lora("b", 2), source="s")
    small = AdapterRegistry(base, AdapterLimits(max_bytes=loaded.nbytes - 1))
    with pytest.raises(LimitReached, match="bytes"):
        small.load("a", loaded, source="s")
    assert small.list_all() == []


def test_threads_that_lease_replace_and_unload_leave_nothing_behind(registry: AdapterRegistry, lora: MakeLora) -> None:
    versions = [lora(f"v{index}", index) for index in range(4)]
    banks = {version.digest: version.bank for version in versions}
    registry.load("hot", versions[0], source="s")
    faults: list[object] = []

    def ask() -> None:
        for _ in range(300):
            try:
                lease = registry.lease(LoraSelection({"hot": 1.0}))
            except AdapterNotFound:
                continue
            if lease.mixture.constant[0].bank is not banks[lease.applied[0].digest]:
                faults.append(lease)
            lease.release()

    def change(version: LoadedLora) -> None:
        for index in range(150):
            registry.load("hot", version, source="s", replace=True)
            if index % 3 == 0:
                try:
                    registry.unload("hot")
                except AdapterNotFound:
                    continue

    threads = [threading.Thread(target=ask) for _ in range(4)]
    threads += [threading.Thread(target=change, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert registry.retired_versions == 0
    assert all(adapter.active_requests == 0 for adapter in registry.list_all())
