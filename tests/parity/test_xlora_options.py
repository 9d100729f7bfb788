"""Every option of X-LoRA against PEFT's forward pass in float32, on a small random model.

The bars are 1e-3 on logits and 1e-4 on scalings; what is found is 1e-5 and less, for logits of size 1 and more.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from inference_svc.adapters import selection
from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.xlora import load_xlora
from tests.inference_svc.weights.tiny_llama import write_tiny_llama_gguf
from tests.parity.served import ServedModel, serve_on_each
from tests.parity.xlora_oracle import FFN, HIDDEN, KV, LAYERS, VOCAB, Expert, Mixture, mixtures, peft_answer

LOGITS_BAR, SCALINGS_BAR = 1e-3, 1e-4
TOKEN_IDS = [3, 17, 44, 8, 91, 23, 60, 5, 77, 12, 31, 2]
# Whole, and as it is served: a prompt in two chunks, then token by token.
CHUNKS = ((12,), (5, 3, 1, 1, 1, 1))
CONFIG: dict[str, Any] = {
    "enable_softmax": True,
    "enable_softmax_topk": False,
    "softmax_temperature": 1.0,
    "top_k_lora": None,
    "scaling_pass_value": 0.0,
    "global_scaling_weight": 1.0,
    "xlora_dropout_p": 0.2,
}
# Transformers warns of a name of its own that PEFT still uses.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model") / "tiny.gguf"


@pytest.fixture(scope="module")
def oracle(gguf: Path) -> Any:
    """The same weights in transformers."""
    return written_model(gguf)


def written_model(
    path: Path, quantization: GGMLQuantizationType = GGMLQuantizationType.F32, *, tied: bool = True
) -> Any:
    """Writes a small random model; the same weights in transformers."""
    sizes = {"hidden": HIDDEN, "heads": 4, "kv_heads": 2, "layers": LAYERS, "ffn": FFN, "vocab": VOCAB}
    weights = write_tiny_llama_gguf(path, **sizes, quantization=quantization, tied=tied)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2 * KV // 16,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    model.load_state_dict({"lm_head.weight": tensors["model.embed_tokens.weight"]} | tensors)
    return model


@pytest.fixture(scope="module")
def served(gguf: Path, oracle: Any) -> list[ServedModel]:
    """On each executor: the answers of the oracle, which take longest, are compared with all of them."""
    return serve_on_each(gguf)


@given(mixture=mixtures())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_combination_of_options_computes_what_peft_computes(
    served: list[ServedModel], oracle: Any, mixture: Mixture
) -> None:
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
        # PEFT advises against some of the combinations, and against merging an adapted head that is tied.
        for advice in (".*`enable_softmax_topk`.*", "Model has `tie_word_embeddings=True`.*"):
            warnings.filterwarnings("ignore", message=advice)
        folders = {layout: mixture.write(Path(root), layout) for layout in mixture.layouts}
        logits, scalings = peft_answer(oracle, mixture, folders["original"], TOKEN_IDS)
        rows = {path: row for row, path in enumerate(mixture.paths)}
        for layout, folder in folders.items():
            ordering = (mixture.order, rows) if layout == "original" else ((), {})
            loaded = load_xlora(folder, *ordering, served[0].registry.base, AdapterLimits())
            xlora = selection.Mixture(xlora=selection.XLoraMixture(loaded.bank, loaded.classifier))
            # Both layouts load as the same mixture, so that one of them is enough for what takes longest.
            for model, chunks in itertools.product(served, CHUNKS if layout == "original" else CHUNKS[:1]):
                ours, applied = model.run_mixture(TOKEN_IDS, xlora, chunks)
                assert applied is not None
                assert (applied - scalings).abs().max() <= SCALINGS_BAR
                assert (ours - logits).abs().max() <= LOGITS_BAR


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_a_head_that_peft_saved_is_computed_on_a_quantized_base(tmp_path: Path, tied: bool) -> None:
    """With what PEFT writes beside the adapter of a head, a copy of the base's own"""
    oracle = written_model(tmp_path / "tiny.gguf", GGMLQuantizationType.Q8_0, tied=tied)
    experts = (Expert(2, ("self_attn.v_proj", "lm_head")), Expert(3, ("lm_head",)))
    mixture = Mixture(experts, CONFIG, depth=1, size=8, use_bias=True, relu=True, inner_step=3, seed=1)
    folder = mixture.write(tmp_path, "original")
    logits, scalings = peft_answer(oracle, mixture, folder, TOKEN_IDS)
    for index, name in enumerate(mixture.order):
        path = folder / name / "adapter_model.safetensors"
        model = get_peft_model(copy.deepcopy(oracle), LoraConfig.from_pretrained(folder / name))
        set_peft_model_state_dict(model, load_file(path))
        model.save_pretrained(folder / name)
        saved = load_file(path)
        assert "base_model.model.lm_head.base_layer.weight" in saved
        assert all(torch.equal(saved[key], tensor) for key, tensor in mixture.expert_tensors(index).items())
    served = serve_on_each(tmp_path / "tiny.gguf")
    base = served[0].registry.base
    rows = {path: row for row, path in enumerate(mixture.paths)}
    loaded = load_xlora(folder, mixture.order, rows, base, AdapterLimits())
    applied = selection.Mixture(xlora=selection.XLoraMixture(loaded.bank, loaded.classifier))
    for model, chunks in itertools.product(served, CHUNKS):
        ours, found = model.run_mixture(TOKEN_IDS, applied, chunks)
        assert found is not None
        assert (found - scalings).abs().max() <= SCALINGS_BAR
        assert (ours - logits).abs().max() <= LOGITS_BAR


def test_the_mixtures_of_this_test_really_change_the_logits(
    served: list[ServedModel], oracle: Any, tmp_path: Path
) -> None:
    experts = (Expert(2, ("self_attn.q_proj", "mlp.up_proj")), Expert(3, ("self_attn.v_proj",)))
    mixture = Mixture(experts, CONFIG, depth=2, size=8, use_bias=True, relu=True, inner_step=3, seed=1)
    logits, _ = peft_answer(oracle, mixture, mixture.write(tmp_path, "original"), TOKEN_IDS)
    base, _ = served[0].run_mixture(TOKEN_IDS, selection.Mixture(), (12,))
    assert (logits - base).abs().max() > 100 * LOGITS_BAR
