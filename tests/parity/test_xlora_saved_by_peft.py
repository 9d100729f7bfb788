"""What PEFT's `save_pretrained` really writes of an X-LoRA: read as far as it is there, and named where it is not.

PEFT (0.21.2) takes every tensor with `.N.` in its name for one of adapter N. So the files of its adapters hold a layer
of the classifier, and lack what lies in decoder layers with the number of another adapter; and the whole base model is
in them too.
"""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, XLoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from inference_svc.adapters import selection
from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.loading import load_from
from inference_svc.adapters.xlora import LoadedXLora
from inference_svc.errors import AdapterMalformed, AdapterUnsupported
from loramux.client.xlora_layouts import convert_xlora
from tests.inference_svc.weights.tiny_llama import write_tiny_llama_gguf
from tests.parity.executors import reference
from tests.parity.served import ServedModel

LOGITS_BAR, SCALINGS_BAR = 1e-3, 1e-4
TOKEN_IDS = [3, 17, 44, 8, 91, 23, 60, 5]
PREFIX = "base_model.internal_xlora_classifier.layers."
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of names of transformers, and of a model without an id

Save = Callable[[str, list[int] | None], tuple[Any, Path]]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model") / "tiny.gguf"


@pytest.fixture(scope="module")
def oracle(gguf: Path) -> Any:
    """The same weights in transformers."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    weights = write_tiny_llama_gguf(gguf, hidden=32, heads=4, kv_heads=2, layers=4, ffn=48)
    config = LlamaConfig(vocab_size=96, num_hidden_layers=4, rms_norm_eps=1e-5, tie_word_embeddings=True, **sizes)
    config.use_cache = False
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    return model


@pytest.fixture(scope="module")
def served(gguf: Path, oracle: Any) -> ServedModel:
    return ServedModel(gguf, reference)


@pytest.fixture
def save(oracle: Any, tmp_path: Path) -> Save:
    """Trains two adapters (at random) on these decoder layers, mixes them, and saves the mixture with PEFT."""

    def make(name: str, layers: list[int] | None) -> tuple[Any, Path]:
        torch.manual_seed(5)
        for index, modules in enumerate((["q_proj", "up_proj"], ["q_proj", "v_proj"])):
            options = {"r": 2 + index, "layers_to_transform": layers, "init_lora_weights": False}
            config = LoraConfig(task_type="CAUSAL_LM", target_modules=modules, **options)
            get_peft_model(copy.deepcopy(oracle), config).save_pretrained(tmp_path / name / f"trained{index}")
        adapters = {str(index): str(tmp_path / name / f"trained{index}") for index in range(2)}
        options = {"hidden_size": 32, "xlora_depth": 2, "xlora_size": 8, "layerwise_scalings": True}
        mixed = get_peft_model(
            copy.deepcopy(oracle), XLoraConfig(task_type="CAUSAL_LM", adapters=adapters, **options)
        ).eval()
        with torch.no_grad():
            for parameter in mixed.base_model.internal_xlora_classifier.parameters():
                parameter.normal_()
        mixed.save_pretrained(tmp_path / name / "saved")
        return mixed, tmp_path / name / "saved"

    return make


def load(folder: Path, served: ServedModel) -> LoadedXLora:
    loaded = load_from(folder, served.registry.base, AdapterLimits())
    assert isinstance(loaded, LoadedXLora)
    return loaded


def test_a_mixture_of_which_everything_is_there_computes_what_it_did_before(save: Save, served: ServedModel) -> None:
    """On layers 2 and 3 no adapter loses anything, and the classifier's layer 0 lies in the file of adapter 0."""
    peft, folder = save("whole", [2, 3])
    saved = load_file(folder / "adapter_model.safetensors")
    assert sorted(saved) == [f"{PREFIX}3.bias", f"{PREFIX}3.weight"]
    first = load_file(folder / "0" / "adapter_model.safetensors")
    assert {f"{PREFIX}weight", "base_model.lora_model.model.model.norm.weight"} <= first.keys()
    with torch.no_grad():
        logits = peft(torch.tensor([TOKEN_IDS])).logits[0]
    loaded = load(folder, served)
    mixture = selection.Mixture(xlora=selection.XLoraMixture(loaded.bank, loaded.classifier))
    ours, scalings = served.run_mixture(TOKEN_IDS, mixture, (5, 1, 1, 1))
    assert scalings is not None
    assert (scalings - peft.get_latest_scalings()[0]).abs().max() <= SCALINGS_BAR
    assert (ours - logits).abs().max() <= LOGITS_BAR
    base, _ = served.run_mixture(TOKEN_IDS, selection.Mixture(), (8,))
    assert (ours - base).abs().max() > 100 * LOGITS_BAR


def test_decoder_layers_that_peft_left_out_of_an_adapter_are_named(save: Save, served: ServedModel) -> None:
    _, folder = save("torn", None)
    with pytest.raises(
        AdapterMalformed, match=r"^0/.*2 trained modules have no tensors, those of the decoder layers 1 among"
    ):
        load(folder, served)


def test_with_the_adapters_as_they_were_before_only_the_classifier_is_torn(save: Save, served: ServedModel) -> None:
    _, folder = save("mended", None)
    layer = load_file(folder / "0" / "adapter_model.safetensors")
    for index in range(2):
        shutil.rmtree(folder / str(index))
        shutil.copytree(folder.parent / f"trained{index}", folder / str(index))
    with pytest.raises(AdapterMalformed, match="layer 0 of the classifier was lost when PEFT saved it") as caught:
        load(folder, served)
    assert caught.value.metadata["lost_layers"] == "0"
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {f"{PREFIX}0.{part}": layer[f"{PREFIX}{part}"] for part in ("weight", "bias")}, path)
    assert torch.equal(load(folder, served).classifier.weights[0], layer[f"{PREFIX}weight"])


def test_a_base_model_in_the_file_that_is_not_the_loaded_one_is_refused(save: Save, served: ServedModel) -> None:
    _, folder = save("other", [2, 3])
    path = folder / "1" / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.lora_model.model.model.layers.2.mlp.down_proj.weight"
    save_file(tensors | {key: tensors[key].roll(1, 0).contiguous()}, path)
    with pytest.raises(AdapterUnsupported, match=rf"`{re.escape(key)}` is a base weight that differs"):
        load(folder, served)


def test_a_file_out_of_an_xlora_that_cannot_be_checked_for_losses_is_refused(save: Save, served: ServedModel) -> None:
    _, folder = save("vague", [2, 3])
    config = folder / "0" / "adapter_config.json"
    config.write_text(re.sub(r'"target_modules": \[[^]]*\]', '"target_modules": null', config.read_text()))
    with pytest.raises(AdapterMalformed, match=r"which loses layers, and adapter_config\.json does not say"):
        load(folder, served)


def test_it_is_converted_to_the_original_layout_whole(save: Save, served: ServedModel, tmp_path: Path) -> None:
    _, folder = save("convert", [2, 3])
    convert_xlora(folder, tmp_path / "original", "original", ("a", "b"))
    classifier = load_file(tmp_path / "original" / "xlora_classifier.safetensors")
    loaded = load(folder, served)
    assert torch.equal(classifier["inner.0.weight"], loaded.classifier.weights[0])
    assert torch.equal(classifier["last.weight"], loaded.classifier.weights[1])
