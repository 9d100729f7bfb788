"""Measured effect on held-out prompts: trait rates of base, adapters and mixture, and the mixture's routes."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .base_model import answer_all, load_base
from .parity import largest_differences
from .prompts import EXPERTS, Prompt, held_out_prompts
from .traits import has_trait
from .two_pass import Mixed, Mixture

MAX_NEW_TOKENS = 64
BATCH = 40
SAMPLES = 2


def measure(gguf: Path, out: Path, seed: int, log: Path) -> dict[str, Any]:
    """Everything the card states, measured in float32 from the stored files."""
    model, tokenizer = load_base(gguf, torch.float32)
    prompts = held_out_prompts()
    ordering = json.loads((out / "xlora-ordering.json").read_text(encoding="utf-8"))
    if tuple(ordering["order"]) != EXPERTS:
        raise ValueError("The ordering's experts are not the ones that are measured.")
    texts = [prompt.text for prompt in prompts]
    base = answer_all(model, tokenizer, texts, MAX_NEW_TOKENS, BATCH)
    print("base answered", flush=True)
    mixture = Mixture(model, out / "xlora", ordering["order"], list(ordering["layers"]))
    answers = {}
    for index, name in enumerate(EXPERTS):
        answers[name] = [mixed.text for mixed in _answer(mixture, tokenizer, texts, fixed=index)]
        print(f"{name} answered", flush=True)
    mixed = _answer(mixture, tokenizer, texts, fixed=None)
    differences = largest_differences(gguf, out / "xlora", list(ordering["layers"]), texts[:: len(texts) // 6])
    return {
        "base_model": {"id": "HuggingFaceTB/SmolLM2-135M-Instruct", "file": gguf.name},
        "seed": seed,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "peft", "gguf", "safetensors")},
        "decoding": {"greedy": True, "max_new_tokens": MAX_NEW_TOKENS, "precision": "float32"},
        "largest_difference_from_peft": differences,
        "training": json.loads(log.read_text(encoding="utf-8")),
        "lora": {name: _trait_rates(name, prompts, base, answers[name]) for name in EXPERTS},
        "xlora": {name: _routes(name, prompts, mixed) for name in EXPERTS},
    }


def _answer(mixture: Mixture, tokenizer: Any, texts: Sequence[str], fixed: int | None) -> list[Mixed]:
    found: list[Mixed] = []
    for start in range(0, len(texts), BATCH):
        found.extend(mixture.answer(tokenizer, texts[start : start + BATCH], MAX_NEW_TOKENS, fixed))
    return found


def _trait_rates(name: str, prompts: Sequence[Prompt], base: Sequence[str], tuned: Sequence[str]) -> dict[str, Any]:
    hits = [has_trait(name, answer) for answer in tuned]
    by_topic: dict[str, list[int]] = {}
    for prompt, hit in zip(prompts, hits, strict=True):
        count = by_topic.setdefault(prompt.topic, [0, 0])
        count[0] += hit
        count[1] += 1
    # Spread over the list, whatever they look like.
    shown = range(len(prompts) // (2 * SAMPLES), len(prompts), len(prompts) // SAMPLES)
    return {
        "prompts": len(prompts),
        "base": sum(has_trait(name, answer) for answer in base),
        "adapter": sum(hits),
        "adapter_by_topic": by_topic,
        "samples": [{"prompt": prompts[i].text, "base": base[i], "adapter": tuned[i]} for i in shown],
    }


def _routes(name: str, prompts: Sequence[Prompt], mixed: Sequence[Mixed]) -> dict[str, Any]:
    right = EXPERTS.index(name)
    own = [(prompt, answer) for prompt, answer in zip(prompts, mixed, strict=True) if prompt.topic == name]
    mean = [sum(answer.over_all[i] for _, answer in own) / len(own) for i in range(len(EXPERTS))]
    sample_prompt, sample = own[len(own) // 2]
    return {
        "prompts": len(own),
        "right_expert_leads": sum(_leader(answer.over_all) == right for _, answer in own),
        "right_expert_leads_prompt_only": sum(_leader(answer.over_prompt) == right for _, answer in own),
        "mean_scalings": {expert: round(value, 4) for expert, value in zip(EXPERTS, mean, strict=True)},
        "trait": sum(has_trait(name, answer.text) for _, answer in own),
        "sample": {
            "prompt": sample_prompt.text,
            "answer": sample.text,
            "mean_scalings": [round(value, 4) for value in sample.over_all],
        },
    }


def _leader(weights: Sequence[float]) -> int:
    return max(range(len(weights)), key=weights.__getitem__)
