"""Random adapters in the forms that the contenders read: PEFT folders, GGUF files, X-LoRA mixtures.

What an adapter says does not matter here, its shape does: all seven projections, the given rank, and weights so small
that the model still writes text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from inference_svc.models.tensor_plan import unpermuted_rows

Shapes = Mapping[str, tuple[int, int]]  # module path -> (out_features, in_features), without the head

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
CLASSIFIER_NAME, XLORA_CONFIG_NAME = "xlora_classifier.safetensors", "xlora_config.json"
_PREFIX = "base_model.model."
_GGUF_NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def write_lora(folder: Path, shapes: Shapes, rank: int, seed: int) -> None:
    """A PEFT folder with float16 weights and alpha = 2 * rank; left alone if it is there."""
    if (folder / CONFIG_NAME).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors: dict[str, Tensor] = {}
    for path, (rows, columns) in shapes.items():
        for side, shape, deviation in (("A", (rank, columns), columns**-0.5), ("B", (rows, rank), 0.005)):
            values = random.standard_normal(shape, np.float32) * np.float32(deviation)
            tensors[f"{_PREFIX}{path}.lora_{side}.weight"] = torch.from_numpy(values.astype(np.float16))
    save_file(tensors, folder / WEIGHTS_NAME)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({path.rpartition(".")[2] for path in shapes}),
    }
    (folder / CONFIG_NAME).write_text(json.dumps(config))


def write_gguf_lora(source: Path, target: Path, head_dim: int) -> None:
    """The same adapter as llama.cpp reads it, rows of Q and K in its own order; left alone if it is there."""
    if target.is_file():
        return
    alpha = json.loads((source / CONFIG_NAME).read_text())["lora_alpha"]
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(alpha))
    for name, tensor in load_file(source / WEIGHTS_NAME).items():
        # base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight
        *_, layer, _, module, side, _ = name.split(".")
        if side == "lora_B" and module in ("q_proj", "k_proj"):
            tensor = torch.empty_like(tensor).index_copy_(0, unpermuted_rows(len(tensor) // head_dim, head_dim), tensor)
        writer.add_tensor(f"blk.{layer}.{_GGUF_NAMES[module]}.weight.{side.lower()}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(target)


def write_xlora(
    folder: Path, experts: Sequence[Path], shapes: Shapes, hidden_size: int, base_model_id: str, *, is_flat: bool
) -> None:
    """A mixture of these adapters with a random classifier, in the layout of the xlora package.

    With `is_flat` the adapters lie beside the classifier, their names in front of their files': mistral.rs stumbles
    over sub-folders.
    """
    if (folder / XLORA_CONFIG_NAME).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    names = expert_names(len(experts))
    for name, source in zip(names, experts, strict=True):
        for file in (CONFIG_NAME, WEIGHTS_NAME):
            target = folder / f"{name}_{file}" if is_flat else folder / name / file
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source / file, target)
    rows = len(experts) * len(shapes)
    random = torch.Generator().manual_seed(len(experts))
    classifier = {
        "last.weight": torch.randn((rows, hidden_size), generator=random) * 0.05,
        "last.bias": torch.randn(rows, generator=random) * 0.1,
    }
    save_file(classifier, folder / CLASSIFIER_NAME)
    config = {
        "hidden_size": hidden_size,
        "base_model_id": base_model_id,
        "adapters": {name: name for name in names},
        "layerwise_scalings": True,
        "enable_relu_and_dropout": False,
        "xlora_depth": 1,
        "xlora_size": 2048,
        "xlora_dropout_p": 0.0,
        "enable_softmax": True,
        "softmax_temperature": 1.0,
        "scaling_pass_value": 0.0,
        "use_bias": True,
        "global_scaling_weight": 1.0,
        "top_k_lora": None,
        "enable_softmax_topk": False,
    }
    (folder / XLORA_CONFIG_NAME).write_text(json.dumps(config))


def expert_names(count: int) -> list[str]:
    """What the adapters of a mixture are called."""
    return [f"expert{number}" for number in range(count)]
