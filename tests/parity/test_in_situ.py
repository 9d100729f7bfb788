"""Float models that are packed while they are loaded, against transformers over the weights that our packing means.

The `gguf` package unpacks them. Rows are as long as the blocks of the K-quants but for those of one layer, whose length
is a multiple of 32 alone. The folders are as users have them: bfloat16, in several files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import save_file

from inference_svc.weights.in_situ import Scheme
from inference_svc.weights.loader import WeightLoader
from inference_svc.weights.opening import open_model
from tests.parity.adapter_cases import check
from tests.parity.architecture_pairs import Pair, on_compiled_code
from tests.parity.executors import reference
from tests.parity.served import ServedModel
from tests.parity.tiny_models import WINDOW, TinyModel

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of tied heads, transformers of configs
SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 160}
MODELS = {
    "llama": TinyModel("Llama", gguf.MODEL_ARCH.LLAMA, SIZES),
    "phi3": TinyModel("Phi3", gguf.MODEL_ARCH.PHI3, SIZES | {"sliding_window": WINDOW}),
    "qwen2": TinyModel("Qwen2", gguf.MODEL_ARCH.QWEN2, SIZES | {"tie_word_embeddings": True}),
    "mixtral": TinyModel("Mixtral", gguf.MODEL_ARCH.LLAMA, SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}),
}
TYPES = {Scheme.Q8_0: {"Q8_0"}, Scheme.Q4_K: {"Q4_K", "Q6_K", "Q5_0", "Q8_0"}}
Make = Callable[[str, Scheme], Pair]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[tuple[str, Scheme], Pair] = {}

    def pair_of(name: str, scheme: Scheme) -> Pair:
        if (name, scheme) not in made:
            folder = tmp_path_factory.mktemp(name)
            MODELS[name].build().bfloat16().save_pretrained(folder, max_shard_size="500KB")
            oracle = unpacked(folder, scheme, tmp_path_factory.mktemp(f"{name}-unpacked"))
            served = ServedModel(folder, reference, batch_invariant=True, quantize=scheme)
            made[name, scheme] = Pair(served, oracle, on_compiled_code(folder, quantize=scheme))
        return made[name, scheme]

    return pair_of


def unpacked(packed: Path, scheme: Scheme, folder: Path) -> Any:
    """The model in transformers with the weights that the gguf package makes of our packing."""
    from transformers import AutoModelForCausalLM

    assert len([*packed.glob("*.safetensors")]) > 1
    loader = WeightLoader(open_model(packed), quantize=scheme)
    tensors = {}
    for name, entry in loader.entries.items():
        dense = gguf.quants.dequantize(loader.tensor(name).data.numpy(), entry.quantization)
        tensors[name] = torch.from_numpy(dense.copy()).reshape(entry.shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(packed / "config.json", folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.mark.parametrize("kind", ["base", "lora"])
@pytest.mark.parametrize("scheme", Scheme, ids=lambda scheme: scheme.value)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_was_packed_while_it_was_loaded(
    make: Make, tmp_path: Path, name: str, scheme: Scheme, kind: str
) -> None:
    pair = make(name, scheme)
    found = {weight.quantization.name for weight in pair.base.weights.values()}
    assert found - {"BF16"} == TYPES[scheme]
    assert ("BF16" in found) == (name == "mixtral")  # its routers
    check(pair, kind, tmp_path)


@pytest.mark.parametrize(("scheme", "bar"), [(Scheme.Q8_0, 0.01), (Scheme.Q4_K, 0.1)], ids=["q8_0", "q4_k"])
def test_packing_moves_weights_as_little_as_its_bits_allow(make: Make, scheme: Scheme, bar: float) -> None:
    # Else the test above could compare two models of zeros.
    exact = MODELS["llama"].build().state_dict()
    for name, weight in make("llama", scheme).oracle.named_parameters():
        if weight.dim() > 1:
            assert 0.001 < (weight - exact[name]).norm() / exact[name].norm() < bar, name
