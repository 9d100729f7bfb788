"""What is kept of an adapter is what its executor reads, once, and that is what is counted of it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType

from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.loading import Loaded
from inference_svc.adapters.lora import load_lora
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.selection import LoraSelection
from inference_svc.adapters.xlora import LoadedXLora
from inference_svc.errors import LimitReached
from inference_svc.kernels.native.compiler import NativeUnavailable
from inference_svc.layers.batch import AdapterRows
from inference_svc.models.base_model import BaseModel, open_base_model
from tests.inference_svc.adapters.conftest import AdapterWriter
from tests.inference_svc.engine.crowd import load_mixture, lora_folder, xlora_folder
from tests.inference_svc.weights.tiny_folder import write_tiny_model

BYTES = {"native": 2, "native-exact": 4, "reference": 4}  # of a number of A or B


@pytest.fixture(scope="module", params=BYTES)
def kernels(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kernels: str, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    path = write_tiny_model(tmp_path_factory.mktemp("model"), quantization=GGMLQuantizationType.Q8_0).gguf
    try:
        opened = open_base_model(str(path), base_model_id=None, device="cpu", kernels=kernels, batch_invariant=True)
        return opened.load()
    except NativeUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def write_for(model: BaseModel, tmp_path: Path) -> AdapterWriter:
    return AdapterWriter(tmp_path, model.shape)


def loaded_kinds(write: AdapterWriter, model: BaseModel) -> dict[str, Loaded]:
    return {
        "lora": load_lora(lora_folder(write, "lora", 1), model.shape, AdapterLimits()),
        "dora": load_lora(dora_folder(write, model), model.shape, AdapterLimits()),
        "xlora": load_mixture(xlora_folder(write, "xlora", 2), model),
    }


def dora_folder(write: AdapterWriter, model: BaseModel) -> Path:
    path = "model.layers.0.mlp.up_proj"
    norms = {f"base_model.model.{path}.lora_magnitude_vector": torch.ones(model.shape.linear_shapes[path][0])}
    tensors = write.tensors([path]) | norms
    return write.lora("dora", tensors=tensors, target_modules=[path], use_dora=True)


def counted(loaded: Loaded, kernels: str) -> int:
    size = BYTES[kernels]
    numbers = sum(delta.a.numel() + delta.b.numel() for delta in loaded.bank.deltas.values())
    others = sum(delta.expert_of_rank.nbytes for delta in loaded.bank.deltas.values())
    others += sum(d.base_factor.nbytes for d in loaded.bank.deltas.values() if d.base_factor is not None)
    return size * numbers + others + (loaded.classifier.nbytes if isinstance(loaded, LoadedXLora) else 0)


def test_a_number_is_kept_once_and_counted_as_it_is_kept(
    kernels: str, model: BaseModel, write_for: AdapterWriter
) -> None:
    registry = AdapterRegistry(model.shape, AdapterLimits(), model.executor.prepare)
    kinds = loaded_kinds(write_for, model)
    expected = {name: counted(loaded, kernels) for name, loaded in kinds.items()}
    tensors = [weakref.ref(delta.a) for loaded in kinds.values() for delta in loaded.bank.deltas.values()]
    for name in list(kinds):
        assert registry.load(name, kinds.pop(name), source=name).size_bytes == expected[name]
    gc.collect()
    assert registry.held_bytes == sum(expected.values())
    assert all(ref() is None for ref in tensors) is (kernels != "reference")
    assert any(ref() is None for ref in tensors) is (kernels != "reference")


def test_the_same_content_again_is_kept_as_it_is(model: BaseModel, write_for: AdapterWriter) -> None:
    registry = AdapterRegistry(model.shape, AdapterLimits(), model.executor.prepare)
    for _ in range(3):
        registry.load("lora", loaded_kinds(write_for, model)["lora"], source="lora", replace=True)
        lease = registry.lease(LoraSelection({"lora": 1.0}))
    assert registry.retired_versions == 2
    assert registry.held_bytes == registry.get("lora").size_bytes
    assert lease.mixture.constant[0].bank is registry.lease(LoraSelection({"lora": 1.0})).mixture.constant[0].bank


def test_limits_hold_what_is_kept_not_what_is_read(kernels: str, model: BaseModel, write_for: AdapterWriter) -> None:
    loaded = loaded_kinds(write_for, model)["lora"]
    size = counted(loaded, kernels)
    AdapterRegistry(model.shape, AdapterLimits(max_bytes=size), model.executor.prepare).load("a", loaded, source="a")
    registry = AdapterRegistry(model.shape, AdapterLimits(max_bytes=size - 1), model.executor.prepare)
    with pytest.raises(LimitReached, match=f"would take {size} bytes"):
        registry.load("a", loaded, source="a")


@pytest.mark.parametrize("kind", ["lora", "xlora"])
def test_a_prepared_bank_computes_what_it_was_prepared_from_computes(
    model: BaseModel, write_for: AdapterWriter, kind: str
) -> None:
    if kind == "lora":
        folder = write_for.lora("head", paths=["lm_head"], rank=3, seed=4)
        bank = load_lora(folder, model.shape, AdapterLimits()).bank
    else:
        bank = loaded_kinds(write_for, model)["xlora"].bank
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(5, model.shape.hidden_size, generator=generator)
    rows = torch.tensor([0, 2, 3])
    scalings = torch.randn(3, max(1, len(bank.scaling_rows)), len(bank.experts), generator=generator)
    with torch.inference_mode():
        outputs = [
            model.executor.logits(hidden, (AdapterRows(each, rows, scalings),))
            for each in (bank, model.executor.prepare(bank))
        ]
        plain = model.executor.logits(hidden, ())
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0][rows], plain[rows])
    assert torch.equal(outputs[0][[1, 4]], plain[[1, 4]])
