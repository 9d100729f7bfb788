"""A tiny random Llama, adapters on some of its linear layers, and passes over sequences that each have their own.

Everything is small: the interpreter takes milliseconds for every program of a launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
from torch import Tensor

from inference_svc.adapters.bank import AdapterBank, LinearDelta
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, AttentionSegment, ForwardBatch
from inference_svc.layers.executor import Executor
from inference_svc.models.architectures import linear_shapes
from inference_svc.models.base_model import define
from inference_svc.models.checkpoint import Checkpoint
from inference_svc.models.config import ModelConfig
from inference_svc.models.definition import ModelDefinition
from inference_svc.models.loading import load_checkpoint
from inference_svc.weights.gguf import GgufFile
from tests.inference_svc.kernels.triton_device import DEVICE
from tests.inference_svc.weights.tiny_llama import write_tiny_llama_gguf

BLOCK_SIZE = 16
BLOCKS = 20  # of each sequence


def tiny_checkpoint(folder: Path) -> Checkpoint:
    """One layer in Q4_1, 32 tokens, an embedding that is the head too."""
    path = folder / "tiny.gguf"
    kind = gguf.GGMLQuantizationType.Q4_1
    write_tiny_llama_gguf(
        path, hidden=32, heads=2, kv_heads=1, layers=1, ffn=64, vocab=32, context=320, quantization=kind
    )
    return load_checkpoint(GgufFile.open(path)).to(DEVICE)


def bank(
    config: ModelConfig, digest: str, ranks: Sequence[int], dtype: torch.dtype, *, dora: bool = False
) -> AdapterBank:
    """An adapter of each rank on a third of the linear layers, which third depends on the ranks."""
    chance = torch.Generator().manual_seed(sum(ranks))
    experts = torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks)).to(DEVICE)
    deltas = {}
    for path, (outputs, inputs) in list(linear_shapes(config).items())[sum(ranks) % 3 :: 3]:
        a = torch.randn(len(experts), inputs, generator=chance) / 8
        b = torch.randn(outputs, len(experts), generator=chance) / 16
        factor = 0.1 * torch.randn(outputs, generator=chance).to(DEVICE) if dora else None
        deltas[path] = LinearDelta(a.to(DEVICE, dtype), b.to(DEVICE, dtype), experts, factor)
    return AdapterBank(digest, tuple(map(str, ranks)), deltas, {path: row for row, path in enumerate(deltas)})


@dataclass(slots=True, eq=False)
class Running:
    """A sequence: the banks that change it, each with one weight, or with new ones for every row, layer and adapter."""

    banks: Sequence[AdapterBank]
    weights: Sequence[float] | None = (1.0,)  # of each bank; None: as an X-LoRA


class Run:
    """Sequences on one executor, with a cache of their own."""

    def __init__(self, executor: Executor, model: ModelDefinition, sequences: Sequence[Running]) -> None:
        config = model.config
        self.executor = executor
        self.sequences = sequences
        self.done = [0] * len(sequences)
        count = len(sequences) * BLOCKS
        self.blocks = torch.randperm(count, generator=torch.Generator().manual_seed(1)).to(DEVICE).view(-1, BLOCKS)
        self.cache = KVCache(
            config.num_layers,
            count,
            BLOCK_SIZE,
            config.num_kv_heads,
            config.head_dim,
            1,
            dtype=executor.cache_dtype,
            device=DEVICE,
        )
        self._last: tuple[tuple[int, ...], tuple[AdapterRows, ...]] = ((), ())

    def step(self, counts: Sequence[int], chance: torch.Generator) -> Tensor:
        """Logits of a pass over so many more tokens of each sequence."""
        hidden = self.hidden_states(counts, chance)
        return self.executor.logits(hidden, self._last[1])

    def hidden_states(self, counts: Sequence[int], chance: torch.Generator) -> Tensor:
        """Hidden states of a pass over so many more tokens of each sequence."""
        ids: list[int] = []
        positions: list[int] = []
        slots, segments = [], []
        rows: dict[AdapterBank, list[int]] = {}
        weights: dict[AdapterBank, list[Tensor]] = {}
        for number, (sequence, count) in enumerate(zip(self.sequences, counts, strict=True)):
            first, row = self.done[number], len(ids)
            span = torch.arange(first, first + count, device=DEVICE)
            ids += torch.randint(0, 32, (count,), generator=chance).tolist()
            positions += span.tolist()
            slots.append(self.blocks[number][span // BLOCK_SIZE] * BLOCK_SIZE + span % BLOCK_SIZE)
            if count:
                segments.append(AttentionSegment(row, count, first, self.blocks[number]))
            for index, own in enumerate(sequence.banks):
                rows.setdefault(own, []).extend(range(row, row + count))
                layers, experts = len(own.deltas), len(own.experts)
                values = (
                    torch.rand(count, layers, experts, generator=chance)
                    if sequence.weights is None
                    else torch.full((count, 1, 1), sequence.weights[index])
                )
                weights.setdefault(own, []).append(values)
            self.done[number] += count
        adapters = tuple(
            AdapterRows(
                own, torch.tensor(rows[own], device=DEVICE), torch.cat(weights[own]).to(DEVICE, self.executor.dtype)
            )
            for own in sorted(rows, key=lambda item: item.digest)
            if rows[own]
        )
        same = (*counts, *map(id, rows))
        if all(sequence.weights is not None for sequence in self.sequences) and self._last[0] == same:
            adapters = self._last[1]  # nothing about them has changed: the very same, as the engine gives them
        self._last = same, adapters
        batch = ForwardBatch(
            torch.tensor(ids, device=DEVICE),
            torch.tensor(positions, device=DEVICE),
            torch.cat(slots),
            tuple(segments),
            adapters,
        )
        return self.executor.hidden_states(batch, self.cache)


def tiny_model(folder: Path) -> ModelDefinition:
    """The definition of a tiny model, with its weights."""
    return define(tiny_checkpoint(folder))
