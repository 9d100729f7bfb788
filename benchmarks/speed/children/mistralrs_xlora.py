"""mistral.rs answers: `mistralrs_xlora.py MODEL UNTIED ADAPTERS ORDER KIND`; KIND: base, lora or xlora."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from mistralrs import CompletionRequest, Runner, Which


def main() -> None:
    """Load, then answer one line after the other."""
    model, untied, adapters, order, kind = sys.argv[1:]
    gguf = {
        "tok_model_id": untied,
        "quantized_model_id": str(Path(model).parent),
        "quantized_filename": Path(model).name,
    }
    if kind == "base":
        which = Which.GGUF(**gguf)
    elif kind == "lora":
        which = Which.LoraGGUF(**gguf, adapters_model_id=adapters, order=order)
    else:
        which = Which.XLoraGGUF(**gguf, xlora_model_id=adapters, order=order)
    runner = Runner(which=which)
    print("ready", flush=True)
    for line in sys.stdin:
        (stream,) = json.loads(line)
        began = time.perf_counter()
        usage = runner.send_completion_request(
            CompletionRequest(
                model="default", prompt=stream["prompt"], max_tokens=stream["new_tokens"], temperature=0.0
            )
        ).usage
        seconds = time.perf_counter() - began
        # It counts the first token to the completion, whose time begins after it: the rate is taken as it says it.
        first = usage.total_prompt_time_sec
        decode = (usage.completion_tokens - 1) / usage.avg_compl_tok_per_sec
        timing = [usage.prompt_tokens, usage.completion_tokens, first, first + decode]
        print(json.dumps({"seconds": seconds, "timings": [timing]}), flush=True)


main()
