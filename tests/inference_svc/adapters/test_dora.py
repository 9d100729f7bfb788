"""DoRA adapters, copies of base weights, and configurations that do not fit the tensors beside them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from inference_svc.adapters.bank import LinearDelta
from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape
from inference_svc.adapters.lora import load_lora
from inference_svc.adapters.xlora import load_xlora
from inference_svc.errors import AdapterMalformed, AdapterUnsupported, SourceChanged
from inference_svc.rpc.translation import as_inference_error
from inference_svc.weights.errors import FileChanged
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.quantization import QuantizedTensor
from tests.inference_svc.adapters.conftest import HIDDEN, AdapterWriter

Q0 = "model.layers.0.self_attn.q_proj"
MAGNITUDE = f"base_model.model.{Q0}.lora_magnitude_vector"
HEAD_COPY = "base_model.model.lm_head.base_layer.weight"
EMBEDDING_COPY = "base_model.model.model.embed_tokens.weight"


def dora(write: AdapterWriter, name: str, tensors: dict[str, Tensor], **config: Any) -> LinearDelta:
    folder = write.lora(name, tensors=tensors, use_dora=True, **config)
    return load_lora(folder, write.base, AdapterLimits()).bank.deltas[Q0]


@pytest.mark.parametrize(
    "key", [MAGNITUDE, f"{MAGNITUDE}.default", f"{MAGNITUDE}.weight", f"{MAGNITUDE}.default.weight"]
)
def test_the_ratio_of_magnitudes_is_that_of_the_paper(write: AdapterWriter, key: str) -> None:
    magnitude = torch.rand(HIDDEN) + 0.5
    tensors = write.tensors([Q0])
    delta = dora(write, "dora", tensors | {key: magnitude}, lora_alpha=6)
    a, b = (tensors[f"base_model.model.{Q0}.lora_{half}.weight"] for half in "AB")
    weight = write.base.weights[Q0].dequantize()
    adapted = weight + 3.0 * b @ a
    whole = magnitude[:, None] * adapted / adapted.norm(dim=1, keepdim=True)
    assert delta.base_factor is not None
    torch.testing.assert_close(weight * (1 + delta.base_factor[:, None]) + delta.b @ delta.a, whole)
    assert delta.nbytes == sum(t.nbytes for t in (delta.a, delta.b, delta.expert_of_rank, delta.base_factor))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({MAGNITUDE: None}, f"`{Q0}` lacks lora_magnitude_vector"),
        ({MAGNITUDE: torch.ones(3)}, "lora_magnitude_vector has shape [3], expected [8]"),
        ({MAGNITUDE: torch.ones(2, 4)}, "expected 1 dimensions"),
        ({MAGNITUDE: torch.full((8,), float("nan"))}, "holds NaN or infinity"),
        ({f"{MAGNITUDE}.default": torch.ones(8)}, "is there twice"),
    ],
)
def test_magnitudes_that_do_not_fit_are_refused(
    write: AdapterWriter, change: dict[str, Tensor | None], said: str
) -> None:
    tensors = write.tensors([Q0]) | {MAGNITUDE: torch.ones(HIDDEN)} | change
    with pytest.raises(AdapterMalformed, match=re.escape(said)):
        dora(write, "dora", {key: value for key, value in tensors.items() if value is not None})


def test_a_row_of_norm_zero_is_refused(write: AdapterWriter, base: BaseModelShape) -> None:
    weight = base.weights[Q0].dequantize()
    weight[5] = 0.0
    hollow = QuantizedTensor(weight.view(torch.uint8), GGMLQuantizationType.F32, base.linear_shapes[Q0])
    tensors = write.tensors([Q0]) | {MAGNITUDE: torch.ones(HIDDEN)}
    tensors[f"base_model.model.{Q0}.lora_B.weight"][5] = 0.0
    folder = write.lora("dora", tensors=tensors, use_dora=True)
    with pytest.raises(AdapterMalformed, match="row 5 of the adapted weight has norm 0"):
        load_lora(folder, replace(base, weights={**base.weights, Q0: hollow}), AdapterLimits())


def test_a_dora_cannot_be_an_adapter_of_an_xlora(write: AdapterWriter, base: BaseModelShape) -> None:
    folder = write.xlora("mix", {"a": [Q0]})
    write.lora("mix/a", tensors=write.tensors([Q0], 1) | {MAGNITUDE: torch.ones(HIDDEN)}, rank=1, use_dora=True)
    with pytest.raises(AdapterUnsupported, match="`use_dora`: a DoRA cannot be an adapter of an X-LoRA"):
        load_xlora(folder, ("a",), {Q0: 0}, base, AdapterLimits())


def test_copies_of_the_base_weights_beside_a_head_are_dropped(write: AdapterWriter, base: BaseModelShape) -> None:
    tensors = write.tensors(["lm_head"])
    own = base.weights["lm_head"].dequantize()
    folder = write.lora("head", tensors=tensors | {HEAD_COPY: own.bfloat16(), EMBEDDING_COPY: own.half()})
    assert list(load_lora(folder, base, AdapterLimits()).bank.deltas) == ["lm_head"]


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        (HEAD_COPY, "row", "differs from the base model's own at row 31"),
        (EMBEDDING_COPY, "nan", "differs from the base model's own at row 31"),
        (HEAD_COPY, "longer", "of shape [33, 8], the base model's is [32, 8]: it was resized"),
        ("base_model.model.model.norm.base_layer.weight", "none", "a module that no adapter can change"),
    ],
)
def test_base_weights_that_are_not_the_models_own_are_refused(
    write: AdapterWriter, base: BaseModelShape, key: str, change: str, said: str
) -> None:
    own = base.weights["lm_head"].dequantize().clone()
    if change == "longer":
        own = torch.cat([own, own[:1]])
    elif change != "none":
        own[31] = float("nan") if change == "nan" else torch.randn(HIDDEN)
    folder = write.lora("head", tensors=write.tensors(["lm_head"]) | {key: own})
    with pytest.raises(AdapterUnsupported, match=re.escape(f"`{key}`") + ".*" + re.escape(said)):
        load_lora(folder, base, AdapterLimits())


def test_tensors_and_configuration_must_name_the_same_modules(write: AdapterWriter, base: BaseModelShape) -> None:
    tensors = write.tensors([Q0])
    with pytest.raises(AdapterMalformed, match=r"`model\.layers\.1\.self_attn\.q_proj` has no tensors"):
        load_lora(write.lora("short", tensors=tensors, target_modules=["q_proj"]), base, AdapterLimits())
    with pytest.raises(AdapterMalformed, match=rf"`{re.escape(Q0)}` has tensors, but .* does not say"):
        load_lora(write.lora("stray", tensors=tensors, target_modules=["nothing"]), base, AdapterLimits())
    for modules in (["q_proj"], r".*\.0\..*q_proj"):
        layers = 0 if isinstance(modules, list) else None
        folder = write.lora("fits", tensors=tensors, target_modules=modules, layers_to_transform=layers)
        load_lora(folder, base, AdapterLimits())
    # An expression that could run for ages is not asked: the tensors say the same.
    load_lora(write.lora("odd", tensors=tensors, target_modules="(a+)+"), base, AdapterLimits())


def test_fused_projections_are_linear_layers_like_any_other(write: AdapterWriter, base: BaseModelShape) -> None:
    fused = {"model.layers.0.self_attn.qkv_proj": (16, HIDDEN), "model.layers.0.mlp.gate_up_proj": (24, HIDDEN)}
    phi = replace(base, architecture="phi3", linear_shapes=fused)
    writer = AdapterWriter(write.root, phi)
    folder = writer.lora("fused", paths=list(fused), target_modules=["qkv_proj", "gate_up_proj"])
    loaded = load_lora(folder, phi, AdapterLimits())
    assert loaded.target_modules == ("gate_up_proj", "qkv_proj")


@pytest.fixture
def stored(tmp_path: Path) -> GgufFile:
    """A file with a base weight whose rows are in another order in the model."""
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "llama")
    writer.add_tensor("weight", np.random.default_rng(0).standard_normal((HIDDEN, HIDDEN), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile.open(tmp_path / "base.gguf")


def with_weight(write: AdapterWriter, weight: QuantizedTensor) -> AdapterWriter:
    return replace(write, base=replace(write.base, weights={**write.base.weights, Q0: weight}))


def test_norms_are_those_of_a_weight_whose_memory_was_given_back(write: AdapterWriter, stored: GgufFile) -> None:
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    kept, released = (stored.tensor("weight").take_rows(order) for _ in range(2))
    released.release()
    tensors = write.tensors([Q0]) | {MAGNITUDE: torch.rand(HIDDEN) + 0.5}
    expected, factor = (dora(with_weight(write, w), "dora", tensors).base_factor for w in (kept, released))
    assert expected is not None
    assert factor is not None
    assert factor.equal(expected)
    assert not released.is_resident


def test_a_base_file_that_is_written_to_while_it_serves_is_named(write: AdapterWriter, stored: GgufFile) -> None:
    released = stored.tensor("weight")
    released.release()
    with stored.path.open("r+b") as file:
        file.truncate(100)
    tensors = write.tensors([Q0]) | {MAGNITUDE: torch.ones(HIDDEN)}
    with pytest.raises(FileChanged, match=r"base\.gguf: tensor 'weight' is cut off") as caught:
        dora(with_weight(write, released), "dora", tensors)
    assert isinstance(as_inference_error(caught.value), SourceChanged)
