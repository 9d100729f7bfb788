"""Runs sequences through the engine's model runner, without server, scheduler or sampling."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.lora import load_lora
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.selection import Mixture, Selection
from inference_svc.adapters.xlora import load_xlora
from inference_svc.engine.model_runner import ModelRunner, RowRequest, RowResult
from inference_svc.kernels.native.compiler import NativeUnavailable
from inference_svc.kv_cache.blocks import BlockPool
from inference_svc.kv_cache.cache import KVCache
from inference_svc.models.base_model import define, shape_of
from inference_svc.models.loading import load_checkpoint
from inference_svc.scheduling.sequence import ScheduledSequence, Sequence
from inference_svc.weights.in_situ import Scheme
from inference_svc.weights.loader import WeightLoader
from inference_svc.weights.opening import open_model
from tests.parity.executors import ALL, EXACT, MakeExecutor

CPU = torch.device("cpu")
EXPERTS = ("pirate", "json", "verse", "capitals")


class ServedModel:
    """A model with its cache and adapters; computes logits and scalings of token ids."""

    def __init__(
        self,
        path: Path,
        make_executor: MakeExecutor,
        *,
        batch_invariant: bool = False,
        quantize: Scheme | None = None,
    ) -> None:
        checkpoint = load_checkpoint(WeightLoader(open_model(path), quantize=quantize))
        config = checkpoint.config
        self.switch_length = config.rope.switch_length
        self.pool = BlockPool(128, 16)
        executor = make_executor(define(checkpoint), batch_invariant)
        cache = KVCache(
            config.num_layers,
            128,
            16,
            config.num_kv_heads,
            config.head_dim,
            config.hidden_size,
            dtype=executor.cache_dtype,
            hidden_dtype=executor.dtype,
            device=CPU,
        )
        self.runner = ModelRunner(executor, cache, CPU)
        self.registry = AdapterRegistry(shape_of(checkpoint, "", executor.dtype), AdapterLimits())

    def load_demo(self, xlora: Path, order: Seq[str], layers: dict[str, int]) -> None:
        """Load the demo adapters by name, and their mixture as `mixture`."""
        base, limits = self.registry.base, self.registry.limits
        for name in order:
            self.registry.load(name, load_lora(xlora / name, base, limits), source=name)
        self.registry.load("mixture", load_xlora(xlora, order, layers, base, limits), source="xlora")

    def mixture(self, selection: Selection) -> Mixture:
        """The banks behind a selection."""
        return self.registry.lease(selection).mixture

    def start(self, token_ids: Seq[int], mixture: Mixture, num_prompt_tokens: int | None = None) -> Sequence:
        """A sequence with room for its tokens: a prompt, or a prompt and what was generated after it."""
        sequence = Sequence(
            "test",
            list(token_ids),
            len(token_ids) if num_prompt_tokens is None else num_prompt_tokens,
            len(token_ids),
            mixture.xlora is not None,
            switch_length=self.switch_length,
            separates_prompts=self.runner.executor.separates_prompts,
        )
        if sequence.must_switch:
            sequence.switch()
        sequence.blocks.grow(self.pool, len(token_ids))
        if sequence.needs_scaling_pass:
            sequence.scaling_blocks.grow(self.pool, len(token_ids))
        return sequence

    def step(self, parts: Seq[tuple[Sequence, Mixture, int]]) -> list[RowResult]:
        """Run the next tokens of each sequence together, all logits wanted."""
        scheduled = [ScheduledSequence(s, count, s.num_scaling_rows(count)) for s, _, count in parts]
        requests = [RowRequest(item, mixture, True) for item, (_, mixture, _) in zip(scheduled, parts, strict=True)]
        results = self.runner.run(requests)
        for item in scheduled:
            item.sequence.num_computed += item.num_tokens
            item.sequence.num_scaling_computed += item.num_scaling_tokens
        return results

    def finish(self, sequence: Sequence) -> None:
        """Give the blocks back."""
        sequence.blocks.release(self.pool)
        sequence.scaling_blocks.release(self.pool)

    def run(self, token_ids: Seq[int], selection: Selection, chunks: Seq[int]) -> tuple[Tensor, Tensor | None]:
        """Logits [n, vocab_size] and scalings [n, layers, experts] of all positions, computed in chunks."""
        return self.run_mixture(token_ids, self.mixture(selection), chunks)

    def run_mixture(self, token_ids: Seq[int], mixture: Mixture, chunks: Seq[int]) -> tuple[Tensor, Tensor | None]:
        """The same without names and leases."""
        return self._run([(self.start(token_ids, mixture), mixture)], chunks)[0]

    def run_together(
        self, token_ids: Seq[int], selections: Iterable[Selection], chunks: Seq[int]
    ) -> list[tuple[Tensor, Tensor | None]]:
        """The same ids with each of some selections, all in one batch."""
        mixtures = [self.mixture(selection) for selection in selections]
        return self._run([(self.start(token_ids, mixture), mixture) for mixture in mixtures], chunks)

    def _run(self, started: Seq[tuple[Sequence, Mixture]], chunks: Seq[int]) -> list[tuple[Tensor, Tensor | None]]:
        steps = [self.step([(*each, count) for each in started]) for count in chunks]
        answers = []
        for results, (sequence, _) in zip(zip(*steps, strict=True), started, strict=True):
            self.finish(sequence)
            logits = torch.cat([torch.from_numpy(r.logits) for r in results if r.logits is not None])
            scalings = [r.scalings for r in results if r.scalings is not None]
            answers.append((logits, torch.cat(scalings) if scalings else None))
        return answers


def serve_on(name: str, gguf: Path, *, batch_invariant: bool = False) -> ServedModel:
    """A model on an executor; skips the test where that cannot be had."""
    try:
        return ServedModel(gguf, ALL[name], batch_invariant=batch_invariant)
    except NativeUnavailable as error:
        pytest.skip(str(error))


def serve_on_each(gguf: Path, *, batch_invariant: bool = False) -> list[ServedModel]:
    """A model on every exact executor that can be had: for what is compared with an oracle that takes long."""
    models = []
    for make in EXACT.values():
        with contextlib.suppress(NativeUnavailable):
            models.append(ServedModel(gguf, make, batch_invariant=batch_invariant))
    return models
