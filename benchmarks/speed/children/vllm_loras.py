"""vLLM answers: `vllm_loras.py MODEL ADAPTERS MAX_RANK MAX_STREAMS MAX_TOKENS`; ADAPTERS holds folders a0, a1, ..."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def main() -> None:
    """Load, then answer one line after the other."""
    model, adapters = sys.argv[1], Path(sys.argv[2])
    max_rank, max_streams, max_tokens = map(int, sys.argv[3:])
    engine = LLM(
        model,
        dtype="bfloat16",
        enable_lora=True,
        max_loras=max_streams,
        max_cpu_loras=max_streams,
        max_lora_rank=max_rank,
        max_model_len=max_tokens,
        max_num_seqs=max_streams,
        enable_prefix_caching=False,
        disable_log_stats=False,
    )
    print("ready", flush=True)
    for line in sys.stdin:
        streams = json.loads(line)
        parameters = [SamplingParams(temperature=0, max_tokens=s["new_tokens"], ignore_eos=True) for s in streams]
        loras = [_lora(adapters, s["choice"]) for s in streams]
        began = time.perf_counter()
        outputs = engine.generate(
            [s["prompt"] for s in streams], parameters, lora_request=loras if any(loras) else None, use_tqdm=False
        )
        seconds = time.perf_counter() - began
        timings = []
        for output in outputs:
            # Streams end together but for their lengths: of each only the whole is known.
            timings.append([len(output.prompt_token_ids), len(output.outputs[0].token_ids), 0.0, seconds])
        print(json.dumps({"seconds": seconds, "timings": timings}), flush=True)


def _lora(adapters: Path, choice: dict[str, object]) -> LoRARequest | None:
    if choice["kind"] == "base":
        return None
    name = f"a{choice['index']}"
    return LoRARequest(name, int(str(choice["index"])) + 1, str(adapters / name))


if __name__ == "__main__":
    main()
