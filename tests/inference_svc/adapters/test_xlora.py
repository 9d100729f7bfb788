"""Loading an X-LoRA mixture in the original layout, and every way in which it does not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape
from inference_svc.adapters.xlora import load_xlora
from inference_svc.errors import (
    AdapterMalformed,
    AdapterUnfit,
    AdapterUnsupported,
    InferenceError,
    OrderingUnfit,
    SourceNotFound,
)
from tests.inference_svc.adapters.conftest import HIDDEN, AdapterWriter

Q0, V0, UP0 = (f"model.layers.0.{module}" for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"))
LAYERS = {Q0: 1, V0: 0}
EXPERTS = {"adapter_1": [Q0, V0], "adapter_10": [Q0]}
ORDER = ("adapter_1", "adapter_10")


def test_experts_lie_side_by_side_in_the_order_of_the_classifier(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits
) -> None:
    loaded = load_xlora(write.xlora("mix", EXPERTS, global_scaling_weight=3.0), ORDER, LAYERS, base, limits)
    delta = loaded.bank.deltas[Q0]
    assert delta.expert_of_rank.tolist() == [0, 1, 1]
    first = write.tensors([Q0, V0], rank=1, seed=0)
    second = write.tensors([Q0], rank=2, seed=1)
    key = f"base_model.model.{Q0}.lora_{{}}.weight"
    assert torch.equal(delta.a, torch.cat([first[key.format("A")], second[key.format("A")]]))
    assert torch.equal(delta.b, torch.cat([first[key.format("B")], second[key.format("B")]], dim=1) * 2.0)
    assert loaded.bank.deltas[V0].expert_of_rank.tolist() == [0]
    assert loaded.bank.scaling_rows == LAYERS
    assert (loaded.bank.experts, loaded.rank, loaded.target_modules) == (ORDER, 2, ("q_proj", "v_proj"))
    assert loaded.classifier.scalings(torch.randn(5, HIDDEN)).shape == (5, 2, 2)


def test_an_adapted_head_has_the_row_that_the_ordering_gives_it(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits
) -> None:
    rows = {"lm_head": 0, Q0: 1, V0: 2}
    loaded = load_xlora(write.xlora("mix", {"a": [Q0, V0], "b": ["lm_head"]}), ("a", "b"), rows, base, limits)
    assert loaded.bank.scaling_rows == rows
    assert loaded.bank.deltas["lm_head"].expert_of_rank.tolist() == [1, 1]
    assert loaded.target_modules == ("lm_head", "q_proj", "v_proj")


def test_order_and_rows_are_part_of_the_digest(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits
) -> None:
    folder = write.xlora("mix", EXPERTS)
    digests = {
        load_xlora(folder, ORDER, LAYERS, base, limits).digest,
        load_xlora(folder, ORDER[::-1], LAYERS, base, limits).digest,
        load_xlora(folder, ORDER, {Q0: 0, V0: 1}, base, limits).digest,
    }
    assert len(digests) == 3


def test_the_classifier_is_read_once_and_what_was_read_is_in_the_digest(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write.xlora("mix", EXPERTS)
    path = folder / "xlora_classifier.safetensors"
    before = load_xlora(folder, ORDER, LAYERS, base, limits).digest
    opened: list[Path] = []
    whole = Path.open

    def watched(self: Path, *args: Any, **options: Any) -> Any:
        opened.append(self)
        return whole(self, *args, **options)

    monkeypatch.setattr(Path, "open", watched)
    assert load_xlora(folder, ORDER, LAYERS, base, limits).digest == before
    assert opened.count(path) == opened.count(folder / "xlora_config.json") == 1
    save_file({key: value + 1.0 for key, value in load_file(path).items()}, path)
    assert load_xlora(folder, ORDER, LAYERS, base, limits).digest != before


@pytest.mark.parametrize("indices", [(0, 1), (0, 3), (2, 10)])
def test_inner_layers_count_in_order_whatever_their_index(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits, indices: tuple[int, int]
) -> None:
    tensors = {"last.weight": torch.zeros(2, 5), "last.bias": torch.zeros(2)}
    for index, shape in zip(indices, ((5, HIDDEN), (5, 5)), strict=True):
        tensors |= {f"inner.{index}.weight": torch.full(shape, float(index)), f"inner.{index}.bias": torch.zeros(5)}
    folder = write.xlora("mix", EXPERTS, classifier=tensors, xlora_depth=3, xlora_size=5, layerwise_scalings=False)
    classifier = load_xlora(folder, ORDER, LAYERS, base, limits).classifier
    assert [float(weight.mean()) for weight in classifier.weights] == [*map(float, indices), 0.0]
    assert classifier.config.enable_relu_and_dropout  # the default of the xlora package
    assert classifier.scalings(torch.randn(3, HIDDEN)).shape == (3, 2, 2)


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ({"top_k_lora": 3}, AdapterMalformed, "`top_k_lora` is 3"),
        ({"top_k_lora": 0}, AdapterMalformed, "`top_k_lora` is 0"),
        ({"softmax_temperature": 0}, AdapterMalformed, "`softmax_temperature` is 0"),
        ({"xlora_depth": 0}, AdapterMalformed, "`xlora_depth` is 0"),
        ({"xlora_depth": 2}, AdapterMalformed, "`xlora_depth` says 2"),
        ({"xlora_dropout_p": 2}, AdapterMalformed, "`xlora_dropout_p` is 2"),
        ({"use_bias": False}, AdapterMalformed, "`last.bias` is not a tensor"),
        ({"hidden_size": 9}, AdapterUnfit, "`hidden_size` is 9"),
        ({"base_model_id": "maker/other"}, AdapterUnfit, "'maker/other', loaded is 'maker/tiny'"),
        ({"layerwise_scalings": False}, OrderingUnfit, "has 4 rows, the ordering asks for 2 adapters"),
        ({"stop_token_id": 7}, AdapterUnsupported, "`stop_token_id`"),
        ({"adapters": ["adapter_10", "adapter_1"]}, OrderingUnfit, "training order"),
        ({"adapters": {"adapter_1": "x"}}, OrderingUnfit, "adapters ['adapter_1']"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_key(
    write: AdapterWriter,
    base: BaseModelShape,
    limits: AdapterLimits,
    config: dict[str, Any],
    error: type[InferenceError],
    said: str,
) -> None:
    with pytest.raises(error, match=re.escape(said)):
        load_xlora(write.xlora("mix", EXPERTS, **config), ORDER, LAYERS, base, limits)


@pytest.mark.parametrize(
    ("order", "layers", "error", "said"),
    [
        (("adapter_1", "adapter_2"), LAYERS, SourceNotFound, "no sub-folder `adapter_2`; its sub-folders: adapter_1, "),
        (("adapter_1", "adapter"), LAYERS, SourceNotFound, "no sub-folder `adapter`"),
        (("adapter_1", "../mix/adapter_10"), LAYERS, SourceNotFound, "no sub-folder"),
        (("adapter_1", "adapter_1"), LAYERS, OrderingUnfit, "names `adapter_1` more than once"),
        ((), LAYERS, OrderingUnfit, "`order` is empty"),
        (tuple(map(str, range(257))), LAYERS, OrderingUnfit, "257 adapters, an X-LoRA may have 256"),
        (ORDER, {}, OrderingUnfit, "`layers` is empty"),
        (ORDER, {Q0: 0, V0: 2}, OrderingUnfit, f"`{V0}`: 2"),
        (ORDER, {Q0: 0, V0: 0}, OrderingUnfit, "some row is there twice"),
        (ORDER, {Q0: 0, UP0: 1}, OrderingUnfit, f"`{V0}` has adapter tensors but no entry"),
        (ORDER, {Q0: 0, UP0: 1}, OrderingUnfit, f"`{UP0}` is in `layers`, but no adapter"),
    ],
)
def test_an_ordering_that_does_not_fit_is_refused_by_name(
    write: AdapterWriter,
    base: BaseModelShape,
    limits: AdapterLimits,
    order: tuple[str, ...],
    layers: dict[str, int],
    error: type[InferenceError],
    said: str,
) -> None:
    with pytest.raises(error, match=re.escape(said)):
        load_xlora(write.xlora("mix", EXPERTS), order, layers, base, limits)


def test_a_single_nested_folder_is_listed_with_its_files(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits
) -> None:
    with pytest.raises(SourceNotFound, match=r"sub-folders: X-LoRA \(with adapter_config\.json, "):
        load_xlora(write.xlora("mix", {"X-LoRA": [Q0]}), ("math",), {Q0: 0}, base, limits)


def test_a_required_key_that_is_missing_is_named(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits
) -> None:
    with pytest.raises(AdapterMalformed, match="`hidden_size` is null"):
        load_xlora(write.xlora("mix", EXPERTS, without=("hidden_size",)), ORDER, LAYERS, base, limits)
