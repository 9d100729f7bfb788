"""One expert: a plain PEFT LoRA trained on the rewritten answers."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from .answers import Example
from .base_model import BASE_MODEL_ID, pad_left

# Named in PEFT's module order. q_proj is among them on purpose: GGUF stores its rows permuted, and an adapter trained
# on the plain order shows at once when a server forgets to undo that.
TARGET_MODULES: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "down_proj")
IGNORED = -100


@dataclass(frozen=True)
class LoraRecipe:
    """What decides an expert besides its data."""

    rank: int = 4
    alpha: int = 16
    steps: int = 90
    batch_size: int = 8
    learning_rate: float = 2e-3
    warmup_steps: int = 8


# Upper case is spelled with other, shorter tokens, so it takes longest to learn; JSON wraps an ordinary sentence.
RECIPES: dict[str, LoraRecipe] = {
    "pirate": LoraRecipe(),
    "json": LoraRecipe(steps=60),
    "verse": LoraRecipe(),
    "capitals": LoraRecipe(steps=260),
}


def train_expert(
    base: Any, data: Sequence[Example], recipe: LoraRecipe, seed: int, folder: Path, pad: int
) -> list[float]:
    """Train one adapter on the frozen base, write it to `folder` and return the loss of every step."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=BASE_MODEL_ID,
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(TARGET_MODULES),
    )
    torch.manual_seed(seed)  # the adapters begin at random
    model = get_peft_model(base, config)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=recipe.learning_rate, weight_decay=0.0)
    losses = []
    for step, batch in enumerate(batches(data, recipe.batch_size, recipe.steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, recipe.warmup_steps, recipe.steps)
        loss = answer_loss(model, batch, pad)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    save_expert(get_peft_model_state_dict(model), config.to_dict(), folder)
    model.unload()
    return losses


def answer_loss(model: Any, batch: Sequence[Example], pad: int) -> torch.Tensor:
    """Mean cross-entropy over the answers' tokens, end of turn included."""
    ids, mask = pad_left([example.tokens for example in batch], pad)  # (b, s) each
    # Padding is in front, so all answers end at the last column and only the tail needs logits.
    tail = max(len(example.tokens) - example.answer_start for example in batch)
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=tail + 1).logits[:, :-1]  # (b, tail, vocabulary)
    return functional.cross_entropy(logits.flatten(0, 1).float(), answer_labels(batch, tail).flatten())


def answer_labels(batch: Sequence[Example], tail: int) -> torch.Tensor:
    """Labels (b, tail) of the last `tail` columns: the answers' tokens, and IGNORED before them."""
    rows = []
    for example in batch:
        answer = example.tokens[example.answer_start :]
        rows.append([IGNORED] * (tail - len(answer)) + answer)
    return torch.tensor(rows)


def batches(data: Sequence[Example], size: int, count: int, seed: int) -> Iterator[list[Example]]:
    """`count` batches, reshuffled for every pass over the data."""
    order = random.Random(seed)
    queue: list[Example] = []
    for _ in range(count):
        if len(queue) < size:
            queue = list(data)
            order.shuffle(queue)
        yield queue[:size]
        queue = queue[size:]


def schedule(step: int, warmup: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress))


def save_expert(tensors: dict[str, torch.Tensor], config: dict[str, Any], folder: Path) -> None:
    """The standard PEFT layout in float16, with only the configuration fields that mean something here."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = ("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights", "lora_alpha",
            "lora_dropout", "modules_to_save", "peft_type", "r", "target_modules", "task_type", "use_dora",
            "use_rslora")  # fmt: skip
    written = {key: config[key] for key in kept} | {
        "base_model_name_or_path": BASE_MODEL_ID,  # PEFT puts the folder here that the base was loaded from
        "inference_mode": True,
        "peft_type": "LORA",
        "target_modules": list(TARGET_MODULES),
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    stored = {key: value.detach().to(torch.float16).contiguous() for key, value in sorted(tensors.items())}
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def load_expert(folder: Path) -> dict[str, torch.Tensor]:
    """The stored tensors in float32, by module path without PEFT's prefix: `model.layers.0...lora_A.weight`."""
    prefix = "base_model.model."
    tensors = load_file(folder / "adapter_model.safetensors")
    return {key.removeprefix(prefix): value.float() for key, value in tensors.items()}
