"""Applying an ordering: what it names is loaded and activated, or nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape
from inference_svc.adapters.lora import LoadedLora
from inference_svc.adapters.ordering import FetchedOrdering, OrderingApplier
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.selection import AdapterKind, BaseSelection, LoraSelection, XLoraSelection
from inference_svc.errors import AdapterExists, InferenceError, OrderingUnfit, SourceNotFound
from inference_svc.weights.quantization import QuantizedTensor, type_in_memory
from tests.inference_svc.adapters.conftest import BASE_ID, AdapterWriter

Q0, V0 = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
LORAS = FetchedOrdering("orderings/x", "r1", None, ("a", "b"), {Q0: 0, V0: 1}, BASE_ID, (), "place")


@pytest.fixture
def registry(base: BaseModelShape, limits: AdapterLimits) -> AdapterRegistry:
    """An empty one."""
    return AdapterRegistry(base, limits)


@pytest.fixture
def applier(
    registry: AdapterRegistry, write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits, tmp_path: Path
) -> OrderingApplier:
    """LoRAs `a`, `b` and `c` in `place`, an X-LoRA in `mix`."""
    for seed, name in enumerate("abc"):
        write.lora(f"place/{name}", seed=seed)
    write.xlora("mix", {"one": [Q0, V0], "two": [Q0]})
    return OrderingApplier(registry, lambda source, _: tmp_path / source, base, limits)


def test_the_order_becomes_active_and_preloads_are_ready(applier: OrderingApplier) -> None:
    applied = applier.apply(replace(LORAS, preload=(("b", "place"), ("c", "place/c"))), None, activate=True)
    assert applied.ordering == "orderings/x@r1"
    assert {adapter.name for adapter in applied.adapters} == {"a", "b", "c"}
    assert {adapter.ordering for adapter in applied.adapters} == {"orderings/x@r1"}
    assert applied.active.selection == LoraSelection({"a": 1.0, "b": 1.0})


@pytest.mark.parametrize("order", [None, ()])
def test_without_an_order_the_base_is_active(applier: OrderingApplier, order: tuple[str, ...] | None) -> None:
    applied = applier.apply(replace(LORAS, order=order, preload=(("c", "place"),)), None, activate=True)
    assert applied.active.selection == BaseSelection()
    assert [adapter.name for adapter in applied.adapters] == ["c"]


def test_a_place_with_one_adapter_at_its_root_serves_an_order_of_one(applier: OrderingApplier) -> None:
    applied = applier.apply(replace(LORAS, order=("a",)), "place/c", activate=False)
    assert [(adapter.name, adapter.source) for adapter in applied.adapters] == [("a", "place/c")]
    assert applied.active.generation == 0


@pytest.mark.parametrize("kind", [None, AdapterKind.XLORA])
def test_an_xlora_is_named_after_its_ordering(applier: OrderingApplier, kind: AdapterKind | None) -> None:
    applied = applier.apply(replace(LORAS, kind=kind, order=("one", "two")), "mix", activate=True)
    assert applied.active.selection == XLoraSelection("x")
    assert applied.adapters[0].experts == ("one", "two")


@pytest.mark.parametrize(
    ("fetched", "error", "said"),
    [
        (replace(LORAS, base_model_id="maker/other"), OrderingUnfit, "'maker/other', loaded is 'maker/tiny'"),
        (replace(LORAS, base_model_id=""), OrderingUnfit, "`base_model_id` is missing"),
        (replace(LORAS, order=("a", "a")), OrderingUnfit, "`order` names `a` more than once"),
        (replace(LORAS, preload=(("c", "p"), ("c", "p"))), OrderingUnfit, "`preload_adapters` names `c`"),
        (replace(LORAS, layers={"model.norm": 0}), OrderingUnfit, "Got a layer name `model.norm` in the ordering, exp"),
        (replace(LORAS, layers={Q0.replace("0", "9"): 0}), OrderingUnfit, "is not a linear layer of the base model"),
        (replace(LORAS, adapter_model_id=""), OrderingUnfit, "says where it is"),
        (replace(LORAS, order=("a", "nobody")), SourceNotFound, "no sub-folder `nobody`; its sub-folders: a, b, c"),
        (replace(LORAS, kind=AdapterKind.XLORA, adapter_model_id=""), OrderingUnfit, "without a place"),
    ],
)
def test_an_ordering_that_does_not_fit_changes_nothing(
    applier: OrderingApplier,
    registry: AdapterRegistry,
    fetched: FetchedOrdering,
    error: type[InferenceError],
    said: str,
) -> None:
    with pytest.raises(error) as caught:
        applier.apply(fetched, None, activate=True)
    assert said in caught.value.message
    assert registry.list_all() == []
    assert registry.active.generation == 0


def test_a_new_revision_replaces_what_the_old_one_brought(
    applier: OrderingApplier, registry: AdapterRegistry, write: AdapterWriter
) -> None:
    applier.apply(LORAS, None, activate=True)
    lease = registry.lease(LoraSelection({"a": 1.0}))
    write.lora("place/c", seed=7)
    applier.apply(replace(LORAS, revision_id="r2", order=("a", "c")), None, activate=True)
    assert [(a.name, a.ordering) for a in registry.list_all()] == [("a", "orderings/x@r2"), ("c", "orderings/x@r2")]
    assert registry.get("a").active_requests == 1  # unchanged content: the same version
    assert lease.applied[0].ordering == "orderings/x@r1"


def test_a_name_that_somebody_else_loaded_is_left_alone(
    applier: OrderingApplier, registry: AdapterRegistry, lora: Callable[[str, int], LoadedLora]
) -> None:
    registry.load("b", lora("mine", 5), source="mine")
    with pytest.raises(AdapterExists, match="already loaded from mine"):
        applier.apply(LORAS, None, activate=True)
    assert [adapter.name for adapter in registry.list_all()] == ["b"]


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        (GGMLQuantizationType.Q4_0, "4.5"),
        (GGMLQuantizationType.Q4_1, None),
        (GGMLQuantizationType.Q2_K, "2.6"),
        (GGMLQuantizationType.IQ2_XXS, "2.1"),  # which is unpacked when it is loaded
    ],
)
def test_an_x_lora_on_a_base_of_few_bits_is_applied_with_a_warning(
    applier: OrderingApplier, quantization: GGMLQuantizationType, bits: str | None
) -> None:
    in_memory = type_in_memory(quantization, exact=True)
    block, block_bytes = GGML_QUANT_SIZES[quantization][0], GGML_QUANT_SIZES[in_memory][1]
    weights = dict(applier.base.weights)
    for path in applier.base.linear_shapes.keys() - {"lm_head"}:  # which stays as it is, and does not count
        data = torch.zeros((block, block * block_bytes // GGML_QUANT_SIZES[in_memory][0]), dtype=torch.uint8)
        weights[path] = QuantizedTensor(data, in_memory, (block, block), precision=quantization)
    packed = replace(applier, base=replace(applier.base, weights=weights))
    mixture = replace(LORAS, order=("one", "two"))
    applied = packed.apply(mixture, "mix", activate=True)
    assert isinstance(applied.active.selection, XLoraSelection)
    if bits is None:
        assert applied.warnings == ()
    else:
        (warning,) = applied.warnings
        assert f"orderings/x@r1 is an X-LoRA, and the base model has {bits} bits a weight" in warning
        assert "`loramux distortion`" in warning
    assert packed.apply(LORAS, None, activate=True).warnings == ()
    assert applier.apply(mixture, "mix", activate=True).warnings == ()  # on floats
