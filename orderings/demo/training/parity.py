"""Whether the cached two-pass model that measures is the model that PEFT trained: same scalings, same logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .base_model import load_base, pad_left, render
from .prompts import EXPERTS
from .two_pass import Mixture


@torch.inference_mode()
def largest_differences(gguf: Path, folder: Path, paths: Sequence[str], prompts: Sequence[str]) -> dict[str, float]:
    """Largest absolute difference of scalings and of logits over the prompts' tokens, both models in float32."""
    model, tokenizer = load_base(gguf, torch.float32)
    ids, mask = pad_left([render(tokenizer, prompt) for prompt in prompts], tokenizer.pad_token_id)
    theirs_logits, theirs_scalings = _peft(gguf, folder, ids, mask)
    mixture = Mixture(model, folder, EXPERTS, paths)
    mixture.scalings = mixture.classify(model.model(input_ids=ids, attention_mask=mask).last_hidden_state)
    logits = model(input_ids=ids, attention_mask=mask).logits
    real = mask.bool()
    return {
        "scalings": float((mixture.scalings - theirs_scalings)[real].abs().max()),
        "logits": float((logits - theirs_logits)[real].abs().max()),
    }


def _peft(gguf: Path, folder: Path, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (b, s, vocabulary) and scalings (b, s, layers, experts) of PEFT's X-LoRA with the stored tensors."""
    from peft import XLoraConfig, get_peft_model

    base, _ = load_base(gguf, torch.float32)
    base.config.use_cache = False
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=base.config.hidden_size,
        adapters={str(index): str(folder / name) for index, name in enumerate(EXPERTS)},
        layerwise_scalings=True,
        xlora_depth=1,
        xlora_dropout_p=0.0,
    )
    model: Any = get_peft_model(base, config)
    classifier = model.base_model.internal_xlora_classifier
    stored = load_file(folder / "xlora_classifier.safetensors")
    classifier.layers[-1].load_state_dict({key.removeprefix("last."): value for key, value in stored.items()})
    logits = model(input_ids=ids, attention_mask=mask).logits
    return logits, model.base_model.internal_xlora_scalings
