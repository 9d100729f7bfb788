"""transformers answers, or PEFT's X-LoRA: `transformers_peft.py MODEL HIDDEN_SIZE [EXPERT ...]`."""

from __future__ import annotations

import json
import os
import sys
import time

import torch
from peft import XLoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Load, then answer one line after the other."""
    folder, hidden_size, *experts = sys.argv[1:]
    torch.set_num_threads(os.cpu_count() or 1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    if experts:
        model.config.use_cache = False  # PEFT's X-LoRA refuses to run with one
        config = XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=int(hidden_size),
            xlora_depth=1,
            layerwise_scalings=True,
            adapters={str(number): path for number, path in enumerate(experts)},
        )
        model = get_peft_model(model, config).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    print("ready", flush=True)
    for line in sys.stdin:
        (stream,) = json.loads(line)
        ids = tokenizer(stream["prompt"], return_tensors="pt").input_ids
        new_tokens = stream["new_tokens"]
        began = time.perf_counter()
        with torch.no_grad():
            output = model.generate(
                input_ids=ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
            )
        seconds = time.perf_counter() - began
        made = output.shape[1] - ids.shape[1]
        # generate() returns everything at once: of the stream only the whole is known.
        print(json.dumps({"seconds": seconds, "timings": [[ids.shape[1], made, 0.0, seconds]]}), flush=True)


main()
