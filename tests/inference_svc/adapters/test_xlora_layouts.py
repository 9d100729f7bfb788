"""Both layouts of X-LoRA: what converting carries over, that both load as one mixture, and what is refused by name."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from safetensors.torch import load_file, save_file

from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape
from inference_svc.adapters.loading import load_from
from inference_svc.adapters.xlora import LoadedXLora, load_xlora
from inference_svc.errors import AdapterMalformed, OrderingUnfit
from loramux.client import InvalidArgument
from loramux.client.xlora_layouts import convert_xlora
from tests.parity.xlora_oracle import HIDDEN, LINEAR_SHAPES, Expert, Mixture, mixtures

CONFIG: dict[str, Any] = {
    "enable_softmax": True,
    "enable_softmax_topk": False,
    "softmax_temperature": 1.0,
    "top_k_lora": None,
    "scaling_pass_value": 0.0,
    "global_scaling_weight": 1.0,
    "xlora_dropout_p": 0.2,
}
EXPERTS = (Expert(2, ("self_attn.q_proj",)), Expert(3, ("self_attn.q_proj", "mlp.up_proj")))
PREFIX = "base_model.internal_xlora_classifier.layers."


def mixture(**changes: Any) -> Mixture:
    fields: dict[str, Any] = {"depth": 3, "size": 8, "use_bias": True, "relu": True, "inner_step": 3, "seed": 1}
    return Mixture(EXPERTS, CONFIG, **fields | changes)


def shape() -> BaseModelShape:
    return BaseModelShape("llama", "", HIDDEN, LINEAR_SHAPES, True, torch.device("cpu"), {})


def load_original(folder: Path, what: Mixture) -> LoadedXLora:
    rows = {path: row for row, path in enumerate(what.paths)}
    return load_xlora(folder, what.order, rows, shape(), AdapterLimits())


def load_peft(folder: Path) -> LoadedXLora:
    loaded = load_from(folder, shape(), AdapterLimits())
    assert isinstance(loaded, LoadedXLora)
    return loaded


def assert_same(one: LoadedXLora, other: LoadedXLora) -> None:
    assert one.bank.scaling_rows == other.bank.scaling_rows
    for path, delta in one.bank.deltas.items():
        theirs = other.bank.deltas[path]
        assert torch.equal(delta.a, theirs.a)
        assert torch.equal(delta.b, theirs.b)
        assert torch.equal(delta.expert_of_rank, theirs.expert_of_rank)
    hidden = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(3))
    assert torch.equal(one.classifier.scalings(hidden), other.classifier.scalings(hidden))
    device = torch.device("cpu")
    assert torch.equal(one.classifier.scaling_pass_scalings(device), other.classifier.scaling_pass_scalings(device))
    assert one.config.global_scaling_weight == other.config.global_scaling_weight


@given(what=mixtures())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_mixture_goes_to_peft_and_back_without_a_change(what: Mixture) -> None:
    assume(what.relu or what.depth == 1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        original = what.write(root, "original")
        assert convert_xlora(original, root / "there", "peft", what.order) == what.order
        assert convert_xlora(root / "there", root / "back", "original") == what.order
        first = load_original(original, what)
        assert_same(first, load_peft(root / "there"))
        assert_same(first, load_original(root / "back", what))
        if what.use_bias and what.inner_step == 3:
            before, after = (load_file(f / "xlora_classifier.safetensors") for f in (original, root / "back"))
            assert before.keys() == after.keys()
            assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_peft_itself_reads_is_what_was_written(tmp_path: Path) -> None:
    from peft import XLoraConfig

    what = mixture()
    original = what.write(tmp_path, "original")
    convert_xlora(original, tmp_path / "peft", "peft", what.order)
    config = XLoraConfig.from_pretrained(tmp_path / "peft")
    assert (config.xlora_depth, config.xlora_size, config.layerwise_scalings) == (3, 8, True)
    assert list(config.adapters) == ["0", "1"]
    keys = set(load_file(tmp_path / "peft" / "adapter_model.safetensors"))
    assert keys == {f"{PREFIX}{index}.{part}" for index in (0, 3, 6) for part in ("weight", "bias")}


def test_tensors_of_any_type_are_carried_over_byte_for_byte(tmp_path: Path) -> None:
    what = mixture()
    original = what.write(tmp_path, "original")
    path = original / "xlora_classifier.safetensors"
    save_file({key: tensor.to(torch.bfloat16) for key, tensor in load_file(path).items()}, path)
    convert_xlora(original, tmp_path / "peft", "peft", what.order)
    written = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    for before, after in (("inner.0", "0"), ("inner.3", "3"), ("last", "6")):
        tensor = written[f"{PREFIX}{after}.weight"]
        assert tensor.dtype is torch.bfloat16
        assert torch.equal(tensor, load_file(path)[f"{before}.weight"])


@pytest.mark.parametrize(("dropout", "lost"), [(0.2, (0,)), (0.0, (0,)), (0.2, (0, 3))])
def test_layers_that_peft_lost_on_saving_are_named(tmp_path: Path, dropout: float, lost: tuple[int, ...]) -> None:
    experts = EXPERTS * 2 if 3 in lost else EXPERTS
    what = dataclasses.replace(mixture(), experts=experts, config=CONFIG | {"xlora_dropout_p": dropout})
    folder = what.write(tmp_path, "peft")
    path = folder / "adapter_model.safetensors"
    kept = {k: t for k, t in load_file(path).items() if int(k.removeprefix(PREFIX).split(".")[0]) not in lost}
    save_file(kept, path)
    said = ", ".join(map(str, lost))
    with pytest.raises(AdapterMalformed, match=f"layer {said} of the classifier was lost when PEFT saved it") as caught:
        load_peft(folder)
    assert caught.value.metadata["lost_layers"] == ",".join(map(str, lost))
    with pytest.raises(InvalidArgument, match=f"lacks layer {said} of the classifier"):
        convert_xlora(folder, tmp_path / "out", "original")
    assert not (tmp_path / "out").exists()


def test_an_ordering_may_name_the_adapters_of_pefts_layout(tmp_path: Path) -> None:
    what = mixture()
    folder = what.write(tmp_path, "peft")
    rows = {path: row for row, path in enumerate(what.paths)}
    loaded = load_xlora(folder, ("math", "bio"), rows, shape(), AdapterLimits())
    assert loaded.bank.experts == ("math", "bio")
    assert_same(loaded, load_peft(folder))
    with pytest.raises(OrderingUnfit, match="training order"):
        load_xlora(folder, ("1", "0"), rows, shape(), AdapterLimits())
    with pytest.raises(OrderingUnfit, match="training order"):
        load_xlora(folder, ("math",), rows, shape(), AdapterLimits())


def test_a_folder_in_both_layouts_is_refused(tmp_path: Path) -> None:
    folder = mixture().write(tmp_path, "original")
    (folder / "adapter_config.json").write_text('{"peft_type": "XLORA"}')
    with pytest.raises(AdapterMalformed, match=r"both xlora_config\.json and"):
        load_from(folder, shape(), AdapterLimits())


@pytest.mark.parametrize(
    ("changes", "order", "said"),
    [
        ({"enable_relu_and_dropout": False}, None, "enable_relu_and_dropout false"),
        ({"adapters": {"adapter_1": "", "adapter_2": ""}}, None, "give the order"),
        ({"adapters": ["adapter_1", "adapter_3"]}, None, "no sub-folder 'adapter_3'"),
        ({"adapters": ["adapter_1", "../original/adapter_2"]}, None, "names are folders"),
        ({}, ("adapter_1",), "has 2 adapters, but the order names 1"),
        ({"xlora_depth": 2}, None, "has 3 layers, but the configuration says xlora_depth 2"),
        ({"use_bias": False}, None, "holds, beside the classifier, the tensor inner.0.bias"),
        ({"stop_token_id": 3}, None, "says stop_token_id"),
        ({"xlora_depth": "three"}, None, "xlora_depth 'three'"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name_and_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], order: tuple[str, ...] | None, said: str
) -> None:
    folder = mixture().write(tmp_path, "original")
    path = folder / "xlora_config.json"
    config = json.loads(path.read_text()) | {"adapters": ["adapter_1", "adapter_2"]} | changes
    path.write_text(json.dumps(config))
    with pytest.raises(InvalidArgument, match=re.escape(said)):
        convert_xlora(folder, tmp_path / "out", "peft", order)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["original"]


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x04" + bytes(7) + b"nope", b"\x02" + bytes(7) + b"{}"])
def test_a_broken_classifier_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    what = mixture()
    folder = what.write(tmp_path, "original")
    (folder / "xlora_classifier.safetensors").write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"xlora_classifier\.safetensors"):
        convert_xlora(folder, tmp_path / "out", "peft", what.order)
