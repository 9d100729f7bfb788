"""X-LoRA and LoRA answers from the stored files, in float32, with two key-value caches.

PEFT's X-LoRA model cannot use a cache, which makes answers of 64 tokens slow. This is the same arithmetic, written
out: a pass of the bare base model, the classifier, and a pass with `y = W x + B ((A x) * s)`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import DynamicCache

from .base_model import pad_left, render
from .lora import load_expert


@dataclass(frozen=True)
class Mixed:
    """One answer, and the mean scaling of every expert over layers and positions (one weight for each expert)."""

    text: str
    over_all: list[float]
    over_prompt: list[float]


class Mixture:
    """The base model with hooks on the ordering's linears that add the experts, weighted by `scalings`."""

    def __init__(self, model: Any, folder: Path, order: Sequence[str], paths: Sequence[str]) -> None:
        self.model = model
        self.scalings: torch.Tensor | None = None  # (b, s, layers, experts); None: the bare base model
        self.shape = (len(paths), len(order))
        classifier = load_file(folder / "xlora_classifier.safetensors")
        self.weight, self.bias = classifier["last.weight"].float(), classifier["last.bias"].float()
        experts = [load_expert(folder / name) for name in order]
        settings = [json.loads((folder / name / "adapter_config.json").read_text(encoding="utf-8")) for name in order]
        scales = [setting["lora_alpha"] / setting["r"] for setting in settings]
        self.ranks = torch.tensor([setting["r"] for setting in settings])
        for row, path in enumerate(paths):
            down = torch.cat([expert[f"{path}.lora_A.weight"] for expert in experts])  # (sum of ranks, in)
            up = torch.cat([e[f"{path}.lora_B.weight"] * s for e, s in zip(experts, scales, strict=True)], dim=1)
            model.get_submodule(path).register_forward_hook(self._hook(row, down, up))

    def _hook(self, row: int, down: torch.Tensor, up: torch.Tensor) -> Any:
        def add_experts(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if self.scalings is None:
                return output
            weights = self.scalings[:, :, row].repeat_interleave(self.ranks, dim=-1)  # (b, s, sum of ranks)
            return output + ((inputs[0] @ down.T) * weights) @ up.T

        return add_experts

    def classify(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scalings (b, s, layers, experts) from the base pass's last hidden states (b, s, hidden)."""
        logits = hidden @ self.weight.T + self.bias
        scalings: torch.Tensor = logits.unflatten(-1, self.shape).softmax(dim=-1)
        return scalings

    @torch.inference_mode()
    def answer(
        self, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, fixed: int | None = None
    ) -> list[Mixed]:
        """Greedy answers of one batch; `fixed` names one expert to use alone at weight 1 instead of the classifier."""
        ids, mask = pad_left([render(tokenizer, prompt) for prompt in prompts], tokenizer.pad_token_id)
        batch, experts = len(prompts), self.shape[1]
        base_cache, real_cache = DynamicCache(), DynamicCache()
        totals, counts = torch.zeros(batch, experts), torch.zeros(batch, 1)
        prompt_means = torch.zeros(batch, experts)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        step_ids, live = ids, torch.ones(batch, dtype=torch.bool)
        written: list[list[int]] = [[] for _ in prompts]
        for step in range(max_new_tokens):
            inputs = {"attention_mask": mask, "position_ids": positions, "use_cache": True}
            if fixed is None:
                self.scalings = None
                base = self.model.model(input_ids=step_ids, past_key_values=base_cache, **inputs)
                self.scalings = self.classify(base.last_hidden_state)
            else:
                self.scalings = torch.zeros(batch, step_ids.shape[1], *self.shape)
                self.scalings[..., fixed] = 1.0
            valid = (mask[:, -step_ids.shape[1] :].bool() & live[:, None]).float()
            totals += (self.scalings.mean(dim=2) * valid[..., None]).sum(dim=1)
            counts += valid.sum(dim=1, keepdim=True)
            if step == 0:
                prompt_means = totals / counts
            logits = self.model(input_ids=step_ids, past_key_values=real_cache, logits_to_keep=1, **inputs).logits
            chosen = logits[:, -1].argmax(dim=-1)
            live = live & (chosen != tokenizer.eos_token_id)
            for row in live.nonzero().flatten().tolist():
                written[row].append(int(chosen[row]))
            if not live.any():
                break
            step_ids = chosen[:, None]
            mask = torch.cat([mask, torch.ones(batch, 1, dtype=mask.dtype)], dim=1)
            positions = positions[:, -1:] + 1
        self.scalings = None
        means = totals / counts
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        return [Mixed(texts[row], means[row].tolist(), prompt_means[row].tolist()) for row in range(batch)]
