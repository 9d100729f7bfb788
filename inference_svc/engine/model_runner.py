"""Turns a schedule into forward passes: the only place where lists become tensors.

A step is one pass, or two if X-LoRA rows without scalings are in it. The first pass carries every base and LoRA row,
X-LoRA rows whose scalings are frozen, and the scaling pass of the others in blocks of its own (the plain base model, if
the scaling pass value is 0), those left out whose blocks are shared and so computed; the hidden states in these blocks
give the scalings. The second pass carries the rows that waited for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_svc.adapters.bank import AdapterBank
from inference_svc.adapters.selection import Mixture, XLoraMixture
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, AttentionSegment, ForwardBatch
from inference_svc.layers.executor import Executor
from inference_svc.scheduling.sequence import ScheduledSequence


@dataclass(frozen=True, slots=True, eq=False)
class RowRequest:
    """What the runner has to compute for one sequence of a step."""

    scheduled: ScheduledSequence
    mixture: Mixture
    all_logits: bool  # of every row (prompt log probabilities), not only of the last
    frozen: Tensor | None = None  # [1, num_layers, num_experts]: scalings of the rows once the sequence is frozen


@dataclass(frozen=True, slots=True, eq=False)
class RowResult:
    """What came out of a step for one sequence."""

    logits: Tensor | None  # float32 [num_tokens or 1, vocab_size]; None if the prompt is not at its end
    scalings: Tensor | None  # float32 [num_tokens, num_layers, num_experts], X-LoRA only


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Rows of one sequence in one pass."""

    request: RowRequest
    blocks: list[int]
    first_row: int
    positions: range
    scalings: Tensor | None  # [num_tokens, num_layers, num_experts]: the real pass of an X-LoRA
    is_scaling_pass: bool

    @property
    def num_rows(self) -> int:
        return len(self.positions)


class ModelRunner:
    """Runs steps of a model on its cache."""

    def __init__(self, executor: Executor, cache: KVCache, device: torch.device) -> None:
        self.executor = executor
        self.cache = cache
        self.device = device

    @torch.inference_mode()
    def run(self, requests: Sequence[RowRequest]) -> list[RowResult]:
        """Compute the scheduled rows; results in the order of the requests."""
        results: dict[int, RowResult] = {}
        frozen = {id(request): _frozen(request) for request in requests if request.scheduled.sequence.is_frozen}
        first_pass = self._pieces(requests, frozen)
        if first_pass:
            hidden = self._forward(first_pass)
            self._logits([p for p in first_pass if not p.is_scaling_pass], hidden, results)
        waiting = [r for r in requests if r.mixture.xlora is not None and id(r) not in frozen]
        if waiting:
            second_pass = self._pieces(waiting, {id(request): self._scalings(request) for request in waiting})
            self._logits(second_pass, self._forward(second_pass), results)
        return [results[id(request)] for request in requests]

    def _pieces(self, requests: Sequence[RowRequest], scalings: Mapping[int, Tensor]) -> list[_Piece]:
        """Rows of a pass: X-LoRA requests take part with their scalings if they have them, else as a scaling pass."""
        pieces, row = [], 0
        for request in requests:
            sequence = request.scheduled.sequence
            known = scalings.get(id(request))
            is_scaling_pass = request.mixture.xlora is not None and known is None
            blocks = sequence.scaling_blocks if is_scaling_pass else sequence.blocks
            positions = request.scheduled.positions
            if is_scaling_pass:
                positions = range(sequence.num_scaling_computed, sequence.scaling_source(positions[-1]) + 1)
            if positions:
                pieces.append(_Piece(request, blocks.ids, row, positions, known, is_scaling_pass))
                row += len(positions)
        return pieces

    def _scalings(self, request: RowRequest) -> Tensor:
        """Scalings of a sequence's rows, row by row where arithmetic must not follow the batch."""
        assert request.mixture.xlora is not None
        classifier = request.mixture.xlora.classifier
        sequence = request.scheduled.sequence
        sources = [sequence.scaling_source(position) for position in request.scheduled.positions]
        slots = self._slots(sequence.scaling_blocks.ids, sources)
        hidden = self.cache.read_hidden(torch.tensor(slots, device=self.device))
        if not self.executor.batch_invariant:
            return classifier.scalings(hidden.float())
        return torch.cat([classifier.scalings(row) for row in torch.split(hidden.float(), 1)])

    def _forward(self, pieces: list[_Piece]) -> Tensor:
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        segments = []
        for piece in pieces:
            span = piece.positions
            token_ids += piece.request.scheduled.sequence.token_ids[span.start : span.stop]
            positions += span
            slots += self._slots(piece.blocks, span)
            blocks = torch.tensor(piece.blocks, device=self.device)
            segments.append(AttentionSegment(piece.first_row, piece.num_rows, span.start, blocks))
        batch = ForwardBatch(
            torch.tensor(token_ids, device=self.device),
            torch.tensor(positions, device=self.device),
            torch.tensor(slots, device=self.device),
            tuple(segments),
            self._adapter_rows([(p, list(range(p.first_row, p.first_row + p.num_rows)), p.scalings) for p in pieces]),
        )
        hidden = self.executor.hidden_states(batch, self.cache)
        self.cache.write_hidden(batch.slots, hidden)
        return hidden

    def _slots(self, blocks: list[int], positions: Sequence[int]) -> list[int]:
        size = self.cache.block_size
        return [blocks[p // size] * size + p % size for p in positions]

    def _logits(self, pieces: list[_Piece], hidden: Tensor, results: dict[int, RowResult]) -> None:
        """Logits of the rows that choose a token or that the client wants to see."""
        wanted: list[int] = []
        spans: list[tuple[_Piece, list[int], Tensor | None]] = []
        for piece in pieces:
            results[id(piece.request)] = RowResult(None, piece.scalings)
            first = 0 if piece.request.all_logits else piece.num_rows - 1
            if not (piece.request.all_logits or piece.request.scheduled.reaches_end):
                continue
            local = list(range(len(wanted), len(wanted) + piece.num_rows - first))
            wanted += range(piece.first_row + first, piece.first_row + piece.num_rows)
            spans.append((piece, local, None if piece.scalings is None else piece.scalings[first:]))
        if not wanted:
            return
        rows = hidden.index_select(0, torch.tensor(wanted, device=self.device))
        logits = self.executor.logits(rows, self._adapter_rows(spans))
        for piece, local, _ in spans:
            results[id(piece.request)] = RowResult(logits[local[0] : local[-1] + 1], piece.scalings)

    def _adapter_rows(self, spans: Sequence[tuple[_Piece, list[int], Tensor | None]]) -> tuple[AdapterRows, ...]:
        """Group rows by bank, banks by digest."""
        rows: dict[str, list[int]] = {}
        scalings: dict[str, list[Tensor]] = {}
        banks: dict[str, AdapterBank] = {}
        for piece, indices, dynamic in spans:
            mixture = piece.request.mixture
            parts = [
                (w.bank, torch.full((len(indices), 1, 1), w.weight, device=self.device, dtype=self.executor.dtype))
                for w in mixture.constant
            ]
            if mixture.xlora is not None and (values := self._weights(piece, mixture.xlora, dynamic)) is not None:
                parts.append((mixture.xlora.bank, values.expand(len(indices), -1, -1)))
            for bank, weights in parts:
                banks[bank.digest] = bank
                rows.setdefault(bank.digest, []).extend(indices)
                scalings.setdefault(bank.digest, []).append(weights)
        return tuple(
            AdapterRows(banks[digest], torch.tensor(rows[digest], device=self.device), torch.cat(scalings[digest]))
            for digest in sorted(banks)
        )

    def _weights(self, piece: _Piece, xlora: XLoraMixture, scalings: Tensor | None) -> Tensor | None:
        """What a mixture's adapters count with in a piece, [rows or 1, num_layers, num_experts]; None: not at all."""
        config = xlora.classifier.config
        if piece.is_scaling_pass:
            if config.scaling_pass_value == 0.0:
                return None
            scalings = xlora.classifier.scaling_pass_scalings(self.device).unsqueeze(0)
        assert scalings is not None
        return scalings.to(self.executor.dtype) * config.global_scaling_weight


def _frozen(request: RowRequest) -> Tensor:
    assert request.frozen is not None
    return request.frozen.expand(request.scheduled.num_tokens, -1, -1)
