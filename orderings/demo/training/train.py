"""Make the demo adapters: `python -m orderings.demo.training.train --gguf SmolLM2-135M-Instruct.Q4_1.gguf`.

The stages, in order: `data` (the base model's answers), `lora` (four experts), `xlora` (the classifier), `evaluate`
(held-out prompts, float32, from the stored files), `card` (README.md from the measurements).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .answers import examples, questions, write_base_answers
from .base_model import load_base, seed_everything
from .lora import RECIPES, train_expert
from .prompts import EXPERTS

STAGES: tuple[str, ...] = ("data", "lora", "xlora", "evaluate", "card")
SEED = 17


def main() -> None:
    """Run the asked-for stages."""
    arguments = parse_arguments()
    for stage in STAGES:
        if stage not in arguments.stages:
            continue
        seed_everything(arguments.seed)
        began = time.monotonic()
        run_stage(stage, arguments)
        print(f"{stage}: {time.monotonic() - began:.0f} s", flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train and measure the demo LoRA and X-LoRA adapters on the CPU.")
    parser.add_argument("--gguf", type=Path, required=True, help="the base model, SmolLM2-135M-Instruct as GGUF")
    parser.add_argument("--out", type=Path, default=Path("orderings/demo"), help="the folder to write")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--experts", nargs="+", choices=EXPERTS, default=list(EXPERTS), help="for the stage lora")
    return parser.parse_args()


def run_stage(stage: str, arguments: argparse.Namespace) -> None:
    """One stage; each reads what the earlier ones wrote, so any can be run again alone."""
    out: Path = arguments.out
    answers = out / "training" / "base_answers.json"
    if stage == "data":
        model, tokenizer = load_base(arguments.gguf, torch.bfloat16)
        print(f"kept {write_base_answers(model, tokenizer, answers, arguments.seed)} answers", flush=True)
    elif stage == "lora":
        model, tokenizer = load_base(arguments.gguf, torch.bfloat16)
        for expert in arguments.experts:
            began = time.monotonic()
            data = examples(tokenizer, answers, expert)
            recipe = RECIPES[expert]
            losses = train_expert(
                model, data, recipe, arguments.seed, out / "xlora" / expert, pad=tokenizer.pad_token_id
            )
            record(out, expert, asdict(recipe) | {"examples": len(data)}, losses, time.monotonic() - began)
    elif stage == "xlora":
        from .xlora import XLoraRecipe, train_classifier, write_orderings

        model, tokenizer = load_base(arguments.gguf, torch.bfloat16)
        began = time.monotonic()
        recipe_x = XLoraRecipe()
        data_x = {expert: examples(tokenizer, answers, expert) for expert in EXPERTS}
        own = sum(example.topic == expert for expert in EXPERTS for example in data_x[expert])
        asked = questions(tokenizer)
        losses = train_classifier(model, data_x, asked, recipe_x, arguments.seed, out / "xlora", tokenizer.pad_token_id)
        write_orderings(out, model.config.num_hidden_layers)
        record(out, "xlora", asdict(recipe_x) | {"examples": own}, losses, time.monotonic() - began)
    elif stage == "evaluate":
        from .evaluation import measure

        measured = measure(arguments.gguf, out, arguments.seed, log_path(out))
        (out / "measured.json").write_text(json.dumps(measured, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        from .card import render_card

        measured = json.loads((out / "measured.json").read_text(encoding="utf-8"))
        (out / "README.md").write_text(render_card(measured), encoding="utf-8")


def log_path(out: Path) -> Path:
    """Where the training runs are recorded, one entry for each trained thing."""
    return out / "training" / "training_log.json"


def record(out: Path, name: str, recipe: dict[str, Any], losses: list[float], seconds: float) -> None:
    """Add or replace one entry of the training log."""
    path = log_path(out)
    log = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    tail = losses[-10:]
    log[name] = recipe | {
        "first_loss": round(losses[0], 4),
        "last_ten_losses_mean": round(sum(tail) / len(tail), 4),
        "seconds": round(seconds),
    }
    path.write_text(json.dumps(log, indent=2) + "\n", encoding="utf-8")
    print(f"{name}: {log[name]}", flush=True)


if __name__ == "__main__":
    main()
