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
from torch.nn import functional

from .answers import Example
from .base_model import BASE_MODEL_ID, pad_left
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
    # Before that, on the base model's hidden states alone: a step is 4096 positions and takes milliseconds.
    warm_start_steps: int = 400
    warm_start_learning_rate: float = 3e-3
    warm_start_weight_decay: float = 0.3
    batch_size: int = 8
    learning_rate: float = 5e-4
    warmup_steps: int = 4
    weight_decay: float = 0.01
    # Share of the auxiliary loss: -log of the right expert's scaling, averaged over layers and positions. The language
    # model loss alone is content with mixtures in which another expert leads on the tokens that no style touches.
    routing_weight: float = 1.0


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
    base: Any,
    data: dict[str, list[Example]],
    questions: Sequence[Example],
    recipe: XLoraRecipe,
    seed: int,
    folder: Path,
    pad: int,
) -> list[float]:
    """Train the classifier over the experts in `folder` and write it there; returns the loss of every step.

    `data` has each expert's examples; of these, an expert's own topic is used. `questions` are prompts without answers.
    """
    from peft import XLoraConfig, get_peft_model

    own = [example for name in EXPERTS for example in data[name] if example.topic == name]
    weight, bias = warm_start(base, [*own, *questions], recipe, seed, pad)
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
    with torch.no_grad():  # every layer begins with the same weights over experts
        linear.weight.copy_(weight.repeat(linear.out_features // len(EXPERTS), 1))
        linear.bias.copy_(bias.repeat(linear.out_features // len(EXPERTS)))

    optimizer = torch.optim.AdamW(linear.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    losses = []
    random.Random(seed).shuffle(own)
    for step, batch in enumerate(batches(own, recipe.batch_size, recipe.steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, recipe.warmup_steps, recipe.steps)
        language = answer_loss(model, batch, pad)
        routing = routing_loss(model.base_model.internal_xlora_scalings, batch)
        loss = language + recipe.routing_weight * routing
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step}: language {language.item():.3f}, routing {routing.item():.3f}", flush=True)
    save_classifier(linear, base.config.hidden_size, folder)
    return losses


def warm_start(
    base: Any, data: Sequence[Example], recipe: XLoraRecipe, seed: int, pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (experts, hidden) and bias (experts) that tell the topic of a sequence from each of its positions.

    The opening that all prompts share is among the positions on purpose: it teaches an even mixture there.
    """
    states, topics = hidden_states(base, data, pad)
    counts = torch.bincount(topics, minlength=len(EXPERTS)).float()
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(states.shape[1], len(EXPERTS))
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.AdamW(
        linear.parameters(), lr=recipe.warm_start_learning_rate, weight_decay=recipe.warm_start_weight_decay
    )
    for step in range(recipe.warm_start_steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.warm_start_learning_rate * schedule(step, 1, recipe.warm_start_steps)
        picked = torch.randint(len(topics), (4096,), generator=generator)
        loss = functional.cross_entropy(linear(states[picked]), topics[picked], weight=counts.mean() / counts)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return linear.weight.detach(), linear.bias.detach()


@torch.no_grad()
def hidden_states(base: Any, data: Sequence[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The bare base model's last hidden states (positions, hidden) and the position's topic as an expert's index."""
    states: list[torch.Tensor] = []
    topics: list[int] = []
    for start in range(0, len(data), 32):
        batch = data[start : start + 32]
        ids, mask = pad_left([example.tokens for example in batch], pad)
        hidden = base.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (b, s, hidden)
        states.append(hidden[mask.bool()].float())
        topics.extend(EXPERTS.index(example.topic) for example in batch for _ in example.tokens)
    return torch.cat(states), torch.tensor(topics)


def routing_loss(scalings: torch.Tensor, batch: Sequence[Example]) -> torch.Tensor:
    """Mean -log of the right expert's scaling; scalings (b, s, layers, experts), rows padded in front."""
    rows = []
    for row, example in enumerate(batch):
        begin = scalings.shape[1] - len(example.tokens)
        rows.append(-scalings[row, begin:, :, EXPERTS.index(example.topic)].clamp_min(1e-9).log().mean())
    return torch.stack(rows).mean()


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
