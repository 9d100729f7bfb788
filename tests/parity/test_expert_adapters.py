"""Adapters of a Mixtral's experts as PEFT names them since transformers fuses these: parameters, not modules."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference_svc.adapters import selection
from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.lora import load_lora
from inference_svc.adapters.xlora import load_xlora
from inference_svc.errors import AdapterMalformed, AdapterUnsupported
from tests.parity.architecture_pairs import CHUNKS, IDS, Pair, logits_of, written_model
from tests.parity.executors import reference
from tests.parity.peft_files import randomised, written
from tests.parity.served import ServedModel
from tests.parity.tiny_models import TINY_MODELS

pytestmark = pytest.mark.filterwarnings("ignore")
BAR = 1e-3  # on logits of size 8; what is found is 2e-5

TARGETS: dict[str, dict[str, Any]] = {
    "everything": {
        "target_modules": ["q_proj", "lm_head"],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "gate.weight"],
    },
    "down alone": {"target_modules": ["v_proj"], "target_parameters": ["down_proj"], "use_rslora": True},
    "gate and up alone": {"target_modules": ["v_proj"], "target_parameters": ["experts.gate_up_proj"]},
    "ranks of their own": {
        "target_modules": ["o_proj"],
        "target_parameters": ["gate_up_proj", "down_proj"],
        "rank_pattern": {r".*\.gate_up_proj": 6, "down_proj": 2},
        "alpha_pattern": {r".*\.gate_up_proj": 10},
    },
    "by the names of before": {"target_modules": ["k_proj", "w1", "w2", "w3"]},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    tiny = TINY_MODELS["mixtral"]
    oracle, path = written_model(tiny, tiny.build(), "gguf", tmp_path_factory.mktemp("model"))
    return Pair(ServedModel(path, reference, batch_invariant=True), oracle)


def peft_of(pair: Pair, targets: dict[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, **targets)
    peft = get_peft_model(copy.deepcopy(pair.oracle), config, adapter_name="a0").float().eval()
    randomised(peft, "a0", seed=4)
    return peft


def saved(peft: Any, folder: Path) -> Path:
    written(peft, "a0", folder)
    return folder


@pytest.mark.parametrize("name", TARGETS)
def test_experts_compute_what_peft_computes(pair: Pair, tmp_path: Path, name: str) -> None:
    peft = peft_of(pair, TARGETS[name])
    expected = logits_of(peft)
    assert (expected - logits_of(pair.oracle)).abs().max() > 100 * BAR
    loaded = load_lora(saved(peft, tmp_path / "a0"), pair.served.registry.base, AdapterLimits())
    mixture = selection.Mixture(constant=(selection.WeightedBank(loaded.bank, 1.0),))
    for chunks in CHUNKS:
        logits, _ = pair.served.run_mixture(IDS, mixture, chunks)
        assert (logits - expected).abs().max() <= BAR


def test_parameters_that_are_no_experts_are_refused_by_name(pair: Pair, tmp_path: Path) -> None:
    folder = saved(peft_of(pair, TARGETS["down alone"]), tmp_path / "a0")
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"down_proj"', '"down_proj", "embed_tokens.weight"'))
    with pytest.raises(AdapterUnsupported, match=r"`target_parameters` embed_tokens\.weight"):
        load_lora(folder, pair.served.registry.base, AdapterLimits())


@pytest.mark.parametrize("fault", ["a missing half", "another number of experts", "no matrix"])
def test_tensors_that_cannot_be_taken_apart_are_named(pair: Pair, tmp_path: Path, fault: str) -> None:
    folder = saved(peft_of(pair, TARGETS["down alone"]), tmp_path / "a0")
    tensors = load_file(folder / "adapter_model.safetensors")
    key = "base_model.model.model.layers.1.mlp.experts.lora_B.weight"
    if fault == "a missing half":
        del tensors[key]
    else:
        tensors[key] = torch.zeros(64, 14) if fault == "another number of experts" else torch.zeros(15)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterMalformed, match=r"layers\.1\.mlp\.experts\.lora_"):
        load_lora(folder, pair.served.registry.base, AdapterLimits())


@pytest.mark.parametrize("targets", [{"target_parameters": ["down_proj"]}, {"target_parameters": ["gate.weight"]}])
def test_an_xlora_over_parameters_is_refused_as_peft_cannot_run_it_either(
    pair: Pair, tmp_path: Path, targets: dict[str, Any]
) -> None:
    from peft import XLoraConfig, get_peft_model

    base = pair.served.registry.base
    folders = {
        str(i): str(saved(peft_of(pair, targets | {"target_modules": ["v_proj"]}), tmp_path / str(i))) for i in (0, 1)
    }
    oracle = copy.deepcopy(pair.oracle)
    oracle.config.use_cache = False
    mixed = get_peft_model(oracle, XLoraConfig(task_type="CAUSAL_LM", hidden_size=base.hidden_size, adapters=folders))
    # Its layers are swapped by type, and those of parameters are not among them: they hand the scalings on to the
    # model's own modules, which know of none.
    with pytest.raises(TypeError, match="unexpected keyword argument 'scalings'"):
        mixed(torch.tensor([IDS]))

    config = {"peft_type": "XLORA", "hidden_size": base.hidden_size, "adapters": {"0": "", "1": ""}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.internal_xlora_classifier.layers.0"
    tensors = {f"{prefix}.weight": torch.zeros(4, base.hidden_size), f"{prefix}.bias": torch.zeros(4)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(
        AdapterUnsupported, match=rf"`target_parameters` {targets['target_parameters'][0]}: .*PEFT itself"
    ):
        load_xlora(tmp_path, (), {}, base, AdapterLimits())
