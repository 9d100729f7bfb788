"""Adapters of PEFT models: random parameters, and files written from them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def randomised(peft: Any, name: str, seed: int) -> None:
    """Parameters as if trained: B is not zero, and magnitudes have moved."""
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in peft.named_parameters():
        if f".{name}" in key and "lora_" in key:
            noise = torch.randn(parameter.shape, generator=generator)
            with torch.no_grad():
                parameter.copy_(parameter * (1 + 0.2 * noise) if "magnitude" in key else 0.2 * noise)


def written(peft: Any, name: str, folder: Path) -> Path:
    """The adapter's files, from the parameters of the PEFT model."""
    folder.mkdir()
    config = peft.peft_config[name].to_dict()
    listed = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / "adapter_config.json").write_text(json.dumps(listed))
    mine = {re.sub(rf"\.{name}(?=\.|$)", "", k): v for k, v in peft.state_dict().items() if f".{name}" in k}
    tensors = {key.replace("magnitude_vector.weight", "magnitude_vector"): v.contiguous() for key, v in mine.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
