"""Loading streams: at its peak it takes little more memory than what is loaded, whatever is packed on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

HIDDEN, INNER, LAYERS, VOCAB = 1024, 4096, 4, 4096
CONFIG = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
# The peak of a process counts from its start, so each load has a process of its own.
PROGRAM = """
import resource, sys
from pathlib import Path
import torch
from inference_svc.models.loading import load_checkpoint
from inference_svc.weights.in_situ import Scheme
from inference_svc.weights.loader import WeightLoader
from inference_svc.weights.opening import open_model

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(2)
warm = (torch.rand(1 << 18) * 2).bfloat16().float()
loader = WeightLoader(open_model(Path(sys.argv[1])), quantize=Scheme(sys.argv[2]) if sys.argv[2] else None)
before = peak()
checkpoint = load_checkpoint(loader)
print(peak() - before, checkpoint.nbytes)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 MB of bfloat16 in two files."""
    path = tmp_path_factory.mktemp("large")
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{block}.mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        shapes[f"{block}.mlp.down_proj.weight"] = (HIDDEN, INNER)
    tensors = {name: torch.full(shape, 0.5, dtype=torch.bfloat16) for name, shape in shapes.items()}
    norms = [f"model.layers.{i}.{name}_layernorm.weight" for i in range(LAYERS) for name in ("input", "post_attention")]
    tensors |= {name: torch.ones(HIDDEN, dtype=torch.bfloat16) for name in ("model.norm.weight", *norms)}
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, path / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


@pytest.mark.parametrize("scheme", ["", "q8_0"])
def test_the_peak_is_little_more_than_what_is_loaded(folder: Path, scheme: str) -> None:
    command = [sys.executable, "-c", PROGRAM, str(folder), scheme]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, loaded = map(int, result.stdout.split())
    files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert files > 140e6
    assert abs(loaded / files - (1.0 if not scheme else 34 / 64)) < 0.01
    # What a thread packs at once takes a few megabytes, and the allocator keeps some.
    assert taken <= 1.1 * loaded + 12e6
