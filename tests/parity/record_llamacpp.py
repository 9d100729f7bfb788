"""Records which tokens llama.cpp chooses, greedily, with the tiny model of every architecture.

    python -m tests.parity.record_llamacpp LLAMA_SERVER VERSION

LLAMA_SERVER is llama.cpp's server program, VERSION how the file calls it. Writes `llamacpp_golden.json` beside this
file. The models are in float32, and so are keys and values: packed weights would be multiplied with activations rounded
to 8 bits, and the tokens would then tell llama.cpp's rounding. It does not compute the windows of Mistral, Phi-3 and
StarCoder2, so these models have none here; LongRoPE's factors it chooses by the size of the context, not by the length
of the text.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType

from tests.parity.tiny_models import ORIGINAL_LENGTH, TINY_MODELS, VARIANTS, TinyModel, write_gguf

GOLDEN = Path(__file__).with_name("llamacpp_golden.json")
VOCABULARY = [chr(33 + index) for index in range(94)] + ['!"', "<eos>"]
EOS = 95  # never chosen
NEW_TOKENS = 24
SEEDS = (1, 2, 3)
PROMPT_LENGTH = 20


def without_window(tiny: TinyModel) -> TinyModel:
    """The same, where every layer sees everything."""
    return dataclasses.replace(tiny, config=tiny.config | {"sliding_window": None})


MODELS: dict[str, TinyModel] = {
    **TINY_MODELS,
    **{name: without_window(TINY_MODELS[name]) for name in ("mistral", "phi3", "starcoder2", "mixtral")},
    **{name: VARIANTS[name] for name in ("llama with biases, tied", "llama with linear scaling", "llama with yarn")},
    "phi3 with longrope": VARIANTS["phi3 with longrope"],
}
CONTEXT = dict.fromkeys(MODELS, 64)


def prompts(name: str) -> list[list[int]]:
    """Token ids; for LongRoPE so many that the text is a long one from its start."""
    length = ORIGINAL_LENGTH + 2 if "longrope" in name else PROMPT_LENGTH
    return [
        torch.randint(1, EOS - 1, (length,), generator=torch.Generator().manual_seed(seed)).tolist() for seed in SEEDS
    ]


def answers(server: str, model: Path, name: str) -> list[list[int]]:
    """What the server continues the prompts with."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [
        "-c",
        str(CONTEXT[name]),
        "-np",
        "1",
        "-fa",
        "off",
        "-ctk",
        "f32",
        "-ctv",
        "f32",
        "--no-warmup",
        "-t",
        "1",
    ]
    command = [server, "-m", str(model), "--host", "127.0.0.1", "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process)
            return [complete(f"http://127.0.0.1:{port}/completion", prompt) for prompt in prompts(name)]
        finally:
            process.terminate()


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Until the model is loaded."""
    for _ in range(300):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit("the server did not get ready")


def complete(address: str, prompt: list[int]) -> list[int]:
    asked: dict[str, Any] = {
        "prompt": prompt,
        "n_predict": NEW_TOKENS,
        "temperature": 0.0,
        "samplers": ["temperature"],
        "ignore_eos": True,
        "return_tokens": True,
        "cache_prompt": False,
    }
    request = urllib.request.Request(address, json.dumps(asked).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        tokens: list[int] = json.load(answer)["tokens"]
    return tokens


def main(server: str, version: str) -> None:
    """Write the golden file."""
    golden: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, tiny in MODELS.items():
            path = Path(folder) / "model.gguf"
            write_gguf(tiny.build(), path, tiny.arch, GGMLQuantizationType.F32, VOCABULARY)
            golden[name] = answers(server, path, name)
    GOLDEN.write_text(json.dumps({"llama.cpp": version, "answers": golden}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
