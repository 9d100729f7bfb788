"""The X-LoRA classifier: PEFT's X-LoRA model over the frozen experts, exported to the original xlora layout.

Only PEFT's forward is used. Its `save_pretrained` drops the classifier, because the experts' names "0", "1", ... are
taken for the layer numbers of the classifier's own keys.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from .answers import Example
from .base_model import BASE_MODEL_ID
from .lora import TARGET_MODULES, answer_loss, batches, schedule
from .prompts import EXPERTS

MODULE_PARENTS: dict[str, str] = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}


@dataclass(frozen=True)
class XLoraRecipe:
    """What decides the classifier besides its data."""

    steps: int = 60
    batch_size: int = 8
    learning_rate: float = 2e-3
    warmup_steps: int = 4
    weight_decay: float = 0.01
    # Share of the auxiliary loss: -log of the right expert's scaling, averaged over layers and positions. The language
    # model loss alone is content with mixtures in which another expert leads on the tokens that no style touches.
    routing_weight: float = 0.5


class InFloat32(nn.Module):
    """Lets a float32 classifier read a bfloat16 model's hidden states; optimizer steps vanish in bfloat16 weights."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (b, s, hidden), unchanged but for their type."""
        return hidden.float()


def layer_paths(layers: int) -> list[str]:
    """Paths of the adapted linears in PEFT's module order: the rows of the classifier's layer axis."""
    return [
        f"model.layers.{layer}.{MODULE_PARENTS[module]}.{module}"
        for layer in range(layers)
        for module in TARGET_MODULES
    ]


def train_classifier(
    base: Any, data: dict[str, list[Example]], recipe: XLoraRecipe, seed: int, folder: Path, pad: int
) -> list[float]:
    """Train the classifier over the experts in `folder` and write it there; returns the loss of every step."""
    from peft import XLoraConfig, get_peft_model

    base.config.use_cache = False
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=base.config.hidden_size,
        # PEFT loads the adapters under their position and then activates these keys, so the keys must be positions.
        adapters={str(index): str(folder / name) for index, name in enumerate(EXPERTS)},
        layerwise_scalings=True,
        xlora_depth=1,
        xlora_dropout_p=0.0,
        enable_softmax=True,
        softmax_temperature=1.0,
        scaling_pass_value=0.0,
        global_scaling_weight=1.0,
    )
    torch.manual_seed(seed)
    model = get_peft_model(base, config)
    classifier = model.base_model.internal_xlora_classifier
    linear = classifier.layers[-1].float()
    classifier.layers = nn.Sequential(InFloat32(), linear)
    linear.requires_grad_(True)

    own = [example for name in EXPERTS for example in data[name] if example.topic == name]
    shared = common_prefix(own)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    losses = []
    random.Random(seed).shuffle(own)
    for step, batch in enumerate(batches(own, recipe.batch_size, recipe.steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, recipe.warmup_steps, recipe.steps)
        language = answer_loss(model, batch, pad)
        routing = routing_loss(model.base_model.internal_xlora_scalings, batch, shared)
        loss = language + recipe.routing_weight * routing
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step}: language {language.item():.3f}, routing {routing.item():.3f}", flush=True)
    save_classifier(linear, base.config.hidden_size, folder)
    return losses


def routing_loss(scalings: torch.Tensor, batch: Sequence[Example], shared: int) -> torch.Tensor:
    """Mean -log of the right expert's scaling; scalings (b, s, layers, experts), rows padded in front.

    The first `shared` tokens are the same in every prompt and say nothing about its topic, so they are left out.
    """
    rows = []
    for row, example in enumerate(batch):
        begin = scalings.shape[1] - len(example.tokens) + shared
        rows.append(-scalings[row, begin:, :, EXPERTS.index(example.topic)].clamp_min(1e-9).log().mean())
    return torch.stack(rows).mean()


def common_prefix(data: Sequence[Example]) -> int:
    """How many tokens all sequences begin with: the system turn and the opening of the user turn."""
    first = data[0].tokens
    length = len(first)
    for example in data[1:]:
        while example.tokens[:length] != first[:length]:
            length -= 1
    return length


def save_classifier(linear: nn.Linear, hidden_size: int, folder: Path) -> None:
    """`last.weight` (layers * experts, hidden), layer-major, and the configuration, as the xlora package has."""
    tensors = {"last.weight": linear.weight, "last.bias": linear.bias}
    stored = {key: value.detach().float().contiguous() for key, value in tensors.items()}
    save_file(stored, folder / "xlora_classifier.safetensors", metadata={"format": "pt"})
    config = {
        "hidden_size": hidden_size,
        "base_model_id": BASE_MODEL_ID,
        "adapters": {name: name for name in EXPERTS},
        "layerwise_scalings": True,
        "enable_relu_and_dropout": False,
        "xlora_depth": 1,
        "xlora_size": 1,
        "xlora_dropout_p": 0.0,
        "enable_softmax": True,
        "softmax_temperature": 1.0,
        "scaling_pass_value": 0.0,
        "use_bias": True,
        "global_scaling_weight": 1.0,
        "top_k_lora": None,
        "enable_softmax_topk": False,
    }
    (folder / "xlora_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_orderings(out: Path, layers: int) -> None:
    """The X-LoRA ordering (classifier order) and the LoRA ordering (nothing active, all four preloaded)."""
    rows = {path: row for row, path in enumerate(layer_paths(layers))}
    mixture = {"order": list(EXPERTS), "layers": rows, "base_model_id": BASE_MODEL_ID}
    preload = [{"name": name, "adapter_model_id": f"xlora/{name}"} for name in EXPERTS]
    plain = {"order": [], "layers": rows, "base_model_id": BASE_MODEL_ID, "preload_adapters": preload}
    (out / "xlora-ordering.json").write_text(json.dumps(mixture) + "\n", encoding="utf-8")
    (out / "lora-ordering.json").write_text(json.dumps(plain) + "\n", encoding="utf-8")
