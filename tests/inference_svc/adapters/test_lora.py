"""Loading a LoRA adapter, and every way in which it does not fit."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape
from inference_svc.adapters.loading import load_from
from inference_svc.adapters.lora import load_lora
from inference_svc.errors import (
    AdapterMalformed,
    AdapterUnfit,
    AdapterUnsupported,
    LimitReached,
    SourceNotFound,
)
from tests.inference_svc.adapters.conftest import AdapterWriter

Q0 = "model.layers.0.self_attn.q_proj"
UP1 = "model.layers.1.mlp.up_proj"
A_KEY = f"base_model.model.{Q0}.lora_A.weight"
B_KEY = f"base_model.model.{Q0}.lora_B.weight"


def test_the_scale_is_folded_into_b_and_everything_becomes_float32(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits
) -> None:
    tensors = {key: value.to(torch.bfloat16) for key, value in write.tensors([Q0, UP1], rank=3).items()}
    folder = write.lora("pirate", tensors=tensors, r=3, lora_alpha=12, alpha_pattern={"up_proj": 6})
    loaded = load_lora(folder, base, limits)
    delta = loaded.bank.deltas[Q0]
    assert torch.equal(delta.a, tensors[A_KEY].float())
    assert torch.equal(delta.b, tensors[B_KEY].float() * 4.0)
    assert torch.equal(loaded.bank.deltas[UP1].b, tensors[f"base_model.model.{UP1}.lora_B.weight"].float() * 2.0)
    assert delta.expert_of_rank.tolist() == [0, 0, 0]
    assert (loaded.rank, loaded.target_modules, loaded.bank.experts) == (3, ("q_proj", "up_proj"), ("pirate",))
    assert loaded.nbytes == sum(t.nbytes for d in loaded.bank.deltas.values() for t in (d.a, d.b, d.expert_of_rank))


def test_keys_with_the_adapter_name_default_load_alike(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits
) -> None:
    plain = write.tensors([Q0])
    named = {key.replace(".weight", ".default.weight"): value for key, value in plain.items()}
    one = load_lora(write.lora("one", tensors=plain), base, limits)
    two = load_lora(write.lora("two", tensors=named), base, limits)
    assert torch.equal(one.bank.deltas[Q0].b, two.bank.deltas[Q0].b)


def test_what_an_xlora_left_in_the_file_is_no_part_of_the_adapter(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits
) -> None:
    plain = write.tensors([Q0])
    by_the_xlora_package = {"internal_xlora_classifier.last.bias": torch.zeros(3)}
    by_peft = {"base_model.lora_model.model.model.norm.weight": torch.ones(8)}
    renamed = {key.replace("base_model.", "base_model.lora_model.", 1): value for key, value in plain.items()}
    for tensors in (plain | by_the_xlora_package, renamed | by_peft):
        folder = write.lora("pirate", tensors=tensors, target_modules=[Q0])
        bank = load_lora(folder, base, limits).bank
        assert list(bank.deltas) == [Q0]
        assert torch.equal(bank.deltas[Q0].a, plain[A_KEY])


def test_weight_tying_says_nothing_unless_a_tied_head_is_adapted(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits
) -> None:
    """PEFT (`BaseTuner._check_tied_modules`) warns in all other cases, and does what it would do without the key."""
    load_lora(write.lora("plain", paths=[Q0], ensure_weight_tying=True), base, limits)
    head = write.lora("head", paths=["lm_head"], ensure_weight_tying=True)
    with pytest.raises(AdapterUnsupported, match="`lm_head` is adapted together with the embedding"):
        load_lora(head, base, limits)
    untied = {**base.weights, "model.embed_tokens": base.weights[Q0]}
    load_lora(head, replace(base, weights=untied), limits)


def test_a_file_without_any_layer_is_refused(write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits) -> None:
    copy = {"base_model.model.lm_head.base_layer.weight": base.weights["lm_head"].dequantize()}
    with pytest.raises(AdapterMalformed, match="holds no LoRA tensors"):
        load_lora(write.lora("pirate", tensors=copy), base, limits)


def test_the_digest_depends_on_both_files_and_on_nothing_else(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits
) -> None:
    first = load_lora(write.lora("one"), base, limits).digest
    assert load_lora(write.lora("elsewhere/two"), base, limits).digest == first
    others = {
        load_lora(write.lora("three", seed=1), base, limits).digest,
        load_lora(write.lora("four", lora_alpha=5), base, limits).digest,
    }
    assert len(others | {first}) == 3
    assert re.fullmatch("[0-9a-f]{64}", first)


def test_the_head_can_be_adapted(write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits) -> None:
    assert list(load_lora(write.lora("head", paths=["lm_head"]), base, limits).bank.deltas) == ["lm_head"]


@pytest.mark.parametrize(
    ("key", "value", "error", "said"),
    [
        (B_KEY, None, AdapterMalformed, f"`{Q0}` lacks lora_B"),
        (A_KEY, None, AdapterMalformed, f"`{Q0}` lacks lora_A"),
        (A_KEY, torch.full((2, 8), float("nan")), AdapterMalformed, f"`{A_KEY}` holds NaN or infinity"),
        (B_KEY, torch.full((8, 2), float("inf")), AdapterMalformed, f"`{B_KEY}` holds NaN or infinity"),
        (A_KEY, torch.zeros(2, 8, dtype=torch.int32), AdapterUnsupported, "I32"),
        (A_KEY, torch.zeros(16), AdapterMalformed, "expected 2 dimensions"),
        (A_KEY, torch.zeros(3, 8), AdapterMalformed, "ranks must be equal"),
        (A_KEY, torch.zeros(2, 9), AdapterUnfit, "(out, in) = (8, 9), the base model has (8, 8)"),
        ("stray", torch.zeros(1), AdapterMalformed, "`stray` is not a LoRA tensor"),
        (A_KEY.replace(".weight", ".default.weight"), torch.zeros(2, 8), AdapterMalformed, "there twice"),
        (f"base_model.model.{Q0}.lora_magnitude_vector", torch.zeros(8), AdapterMalformed, "does not say `use_dora`"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", torch.zeros(2, 8), AdapterUnsupported, "embedding"),
        (f"base_model.model.{Q0}.lora_B.bias", torch.zeros(8), AdapterUnsupported, "a bias"),
        ("base_model.model.lm_head.weight", torch.zeros(8, 8), AdapterUnsupported, "a whole weight"),
        ("base_model.lora_model.model.x.lora_C.weight", torch.zeros(8, 8), AdapterMalformed, "is not a LoRA tensor"),
        (A_KEY.replace("_model.", "_model.lora_model.", 1), torch.zeros(2, 8), AdapterMalformed, "there twice"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    write: AdapterWriter,
    base: BaseModelShape,
    limits: AdapterLimits,
    key: str,
    value: torch.Tensor | None,
    error: type[Exception],
    said: str,
) -> None:
    tensors = write.tensors([Q0])
    if value is None:
        del tensors[key]
    else:
        tensors[key] = value
    with pytest.raises(error, match=re.escape(said)) as caught:
        load_lora(write.lora("pirate", tensors=tensors), base, limits)
    assert "pirate/adapter_model.safetensors" in str(caught.value)


def test_a_module_that_the_base_lacks_is_unfit(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits
) -> None:
    tensors = {key.replace("layers.0", "layers.7"): value for key, value in write.tensors([Q0]).items()}
    with pytest.raises(AdapterUnfit, match=r"`model\.layers\.7\.self_attn\.q_proj` is not a linear layer"):
        load_lora(write.lora("deep", tensors=tensors), base, limits)


def test_ranks_must_be_those_of_the_config_patterns_included(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits
) -> None:
    with pytest.raises(AdapterUnfit, match=r"rank 2, adapter_config\.json says 4"):
        load_lora(write.lora("one", paths=[Q0], r=4), base, limits)
    mixed = write.tensors([Q0], rank=2) | write.tensors([UP1], rank=5)
    loaded = load_lora(write.lora("two", tensors=mixed, r=2, rank_pattern={"up_proj": 5}), base, limits)
    assert (loaded.rank, loaded.bank.deltas[Q0].a.shape[0]) == (5, 2)


def test_a_scale_that_overflows_is_refused(write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits) -> None:
    with pytest.raises(AdapterMalformed, match="overflows"):
        load_lora(write.lora("loud", lora_alpha=1e300), base, limits)


def test_rank_and_bytes_are_limited(write: AdapterWriter, base: BaseModelShape) -> None:
    folder = write.lora("pirate", rank=4)
    with pytest.raises(LimitReached, match="rank 4 is above the limit of 3"):
        load_lora(folder, base, AdapterLimits(max_rank=3))
    with pytest.raises(LimitReached, match="the limit for adapters is 100"):
        load_lora(folder, base, AdapterLimits(max_bytes=100))


def test_many_problems_are_told_at_once_five_in_full(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits
) -> None:
    tensors = {f"stray.{index}": torch.zeros(1) for index in range(8)}
    with pytest.raises(AdapterMalformed, match=r"stray\.4.*; and 3 more$") as caught:
        load_lora(write.lora("pirate", tensors=tensors), base, limits)
    assert "stray.5" not in str(caught.value)


def test_another_base_model_is_refused_unless_it_is_a_path_or_unknown(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits
) -> None:
    folder = write.lora("pirate", base_model_name_or_path="maker/Tiny")
    with pytest.raises(AdapterUnfit, match="'maker/Tiny', loaded is 'maker/tiny'"):
        load_lora(folder, base, limits)
    load_lora(folder, replace(base, base_model_id=""), limits)
    for accepted in ("/models/tiny", "./tiny", None, "", "tests", "../tiny"):
        load_lora(write.lora("pirate", base_model_name_or_path=accepted), base, limits)


def test_broken_or_missing_files_are_refused(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits, tmp_path: Path
) -> None:
    folder = write.lora("pirate")
    whole = (folder / "adapter_model.safetensors").read_bytes()
    for broken in (whole[:-5], b"", b"\xff" * 64, whole[:20]):
        (folder / "adapter_model.safetensors").write_bytes(broken)
        with pytest.raises(AdapterMalformed, match=r"pirate/adapter_model\.safetensors") as caught:
            load_lora(folder, base, limits)
        assert str(tmp_path) not in caught.value.message
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(SourceNotFound, match=r"pirate/adapter_model\.safetensors"):
        load_lora(folder, base, limits)
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(AdapterUnsupported, match="pickle"):
        load_lora(folder, base, limits)
    with pytest.raises(AdapterMalformed, match="holds no tensors"):
        load_lora(write.lora("empty", tensors={}), base, limits)


def test_a_folder_is_loaded_by_what_it_holds(
    write: AdapterWriter, base: BaseModelShape, limits: AdapterLimits, tmp_path: Path
) -> None:
    assert load_from(write.lora("pirate"), base, limits).rank == 2
    with pytest.raises(AdapterUnsupported, match="apply an ordering"):
        load_from(write.xlora("mix", {"a": [Q0]}), base, limits)
    with pytest.raises(SourceNotFound, match="no adapter folder 'nowhere'"):
        load_from(tmp_path / "nowhere", base, limits)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text(json.dumps({}))
    with pytest.raises(SourceNotFound, match=r"no adapter_config\.json; it has notes\.txt"):
        load_from(tmp_path / "other", base, limits)
