"""Turns a schedule into forward passes: the only place where lists become tensors.

A step is one pass, or two if X-LoRA rows without scalings are in it. The first is the scaling pass of these, in blocks
of its own (the plain base model, if the scaling pass value is 0), without positions whose blocks are shared and so
computed; the hidden states in these blocks give the scalings. The other pass carries the rows of all requests. It has
the many rows, so it is there that kernels for many rows pay; those of a scaling pass give up less accuracy. Where the
executor separates prompts, the real pass is two as well: one of rows of prompts, one of what is generated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference_svc.adapters.classifier import Classifier
from inference_svc.adapters.selection import BASE_CACHE_IDENTITY, Mixture
from inference_svc.engine.adapter_groups import AdaptedRows, AdapterGroups
from inference_svc.engine.step_buffers import StepBuffers
from inference_svc.kv_cache.block_table import BlockTable
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AttentionSegment, ForwardBatch
from inference_svc.layers.executor import Executor
from inference_svc.scheduling.sequence import ScheduledSequence


@dataclass(slots=True, eq=False)
class RowRequest:
    """What the runner has to compute for one sequence of a step."""

    scheduled: ScheduledSequence
    mixture: Mixture
    all_logits: bool  # of every row (prompt log probabilities), not only of those that choose a token
    frozen: Tensor | None = None  # [1, num_layers, num_experts]: scalings of the rows once the sequence is frozen


@dataclass(slots=True, eq=False)
class RowResult:
    """What came out of a step for one sequence."""

    # [num_tokens or 1 + num_drafted, vocab_size]: of all rows, or the last; None if the prompt is not at its end
    logits: NDArray[np.float32] | None
    scalings: Tensor | None  # float32 [num_tokens, num_layers, num_experts], X-LoRA only; None if it has no tokens


@dataclass(slots=True, eq=False)
class _Piece:
    """Rows of one sequence in one pass."""

    request: RowRequest
    table: BlockTable
    first_row: int
    num_rows: int
    positions: range
    scalings: Tensor | None  # [num_rows or 1, num_layers, num_experts]: the real pass of an X-LoRA
    is_scaling_pass: bool


@dataclass(slots=True, eq=False)
class _Classified:
    """Requests of one classifier and the scalings of all of their rows, [num_rows, num_layers, num_experts]."""

    requests: list[RowRequest]
    scalings: Tensor

    def parts(self) -> Iterable[tuple[RowRequest, Tensor]]:
        """Each request with the scalings of its own rows."""
        parts = torch.split(self.scalings, [request.scheduled.num_tokens for request in self.requests])
        return zip(self.requests, parts, strict=True)


class _Workspace:
    """What one of the passes of a step keeps for the next step."""

    def __init__(self, cache: KVCache, dtype: torch.dtype, device: torch.device) -> None:
        self.buffers = StepBuffers(cache.block_size, device)
        self.groups = AdapterGroups(dtype, device)
        self.logit_groups = AdapterGroups(dtype, device)


class ModelRunner:
    """Runs steps of a model on its cache."""

    def __init__(self, executor: Executor, cache: KVCache, device: torch.device) -> None:
        self.executor = executor
        self.cache = cache
        self.device = device
        self._scaling_pass = _Workspace(cache, executor.dtype, device)
        self._real_pass = _Workspace(cache, executor.dtype, device)
        self._prompts = _Workspace(cache, executor.dtype, device)  # their real pass, where they have one of their own

    @torch.inference_mode()
    def run(self, requests: Sequence[RowRequest]) -> list[RowResult]:
        """Compute the scheduled rows; results in the order of the requests."""
        results = {id(request): RowResult(None, None) for request in requests}
        frozen = {id(request): _frozen(request) for request in requests if request.scheduled.sequence.is_frozen}
        mixtures = [r for r in requests if r.mixture.xlora is not None and id(r) not in frozen]
        if scaling_pass := _pieces(mixtures, frozen, is_scaling_pass=True):
            self._run_pass(self._scaling_pass, scaling_pass, _adapted_rows(scaling_pass), results)
        if not self.executor.separates_prompts:
            self._run_real_pass(self._real_pass, requests, frozen, results)
        else:
            prompts, others = _separated(requests)
            self._run_real_pass(self._prompts, prompts, frozen, results)
            self._run_real_pass(self._real_pass, others, frozen, results)
        return [results[id(request)] for request in requests]

    def _run_real_pass(
        self,
        work: _Workspace,
        requests: Sequence[RowRequest],
        frozen: Mapping[int, Tensor],
        results: dict[int, RowResult],
    ) -> None:
        mixtures = [r for r in requests if r.mixture.xlora is not None and id(r) not in frozen]
        classified = self._classified([request for request in mixtures if request.scheduled.num_tokens])
        grouped = {id(request): part for group in classified for request, part in group.parts()}
        if pieces := _pieces(requests, {**frozen, **grouped}, is_scaling_pass=False):
            own = [piece for piece in pieces if id(piece.request) not in grouped]
            self._run_pass(work, pieces, _adapted_rows(own) + _rows_of_groups(pieces, classified), results)

    def _classified(self, requests: Sequence[RowRequest]) -> list[_Classified]:
        """Scalings of the rows of X-LoRA requests, those with one classifier in one product."""
        by_classifier: dict[object, list[RowRequest]] = {}
        for request in requests:
            classifier = _classifier(request)
            same = id(classifier.weights), classifier.config  # what a request overrides is in the config alone
            by_classifier.setdefault(same, []).append(request)
        return [_Classified(group, self._scalings(_classifier(group[0]), group)) for group in by_classifier.values()]

    def _scalings(self, classifier: Classifier, requests: Sequence[RowRequest]) -> Tensor:
        """Scalings of all rows of requests, row by row where arithmetic must not follow the batch."""
        size = self.cache.block_size
        slots: list[int] = []
        for request in requests:
            sequence = request.scheduled.sequence
            ids = sequence.scaling_blocks.ids
            sources = map(sequence.scaling_source, request.scheduled.positions)
            slots += [ids[source // size] * size + source % size for source in sources]
        hidden = self.cache.read_hidden(torch.tensor(slots, device=self.device)).float()
        if not self.executor.batch_invariant:
            return classifier.scalings(hidden)
        return torch.cat([classifier.scalings(row) for row in torch.split(hidden, 1)])

    def _run_pass(
        self, work: _Workspace, pieces: list[_Piece], adapted: list[AdaptedRows], results: dict[int, RowResult]
    ) -> None:
        batch = self._batch(work, pieces, adapted)
        hidden = self.executor.hidden_states(batch, self.cache)
        # Those of the base model serve scaling passes that are the same: not where prompts are separated.
        shares_base = not self.executor.separates_prompts
        if batch.has_scaling_pass or (shares_base and any(p.table.identity == BASE_CACHE_IDENTITY for p in pieces)):
            self.cache.write_hidden(batch.slots, hidden)
        self._logits(work, [piece for piece in pieces if not piece.is_scaling_pass], batch, hidden, results)

    def _batch(self, work: _Workspace, pieces: list[_Piece], adapted: list[AdaptedRows]) -> ForwardBatch:
        buffers, last = work.buffers, pieces[-1]
        buffers.begin(last.first_row + last.num_rows)
        segments = []
        for piece in pieces:
            positions, scheduled = piece.positions, piece.request.scheduled
            token_ids, rotary_offset = scheduled.token_ids(positions), scheduled.sequence.rotary_offset
            buffers.put(piece.first_row, token_ids, positions, piece.table, rotary_offset)
            blocks = torch.from_numpy(piece.table.as_array())
            if self.device.type != "cpu":
                blocks = blocks.to(self.device)
            segments.append(AttentionSegment(piece.first_row, piece.num_rows, positions.start, blocks))
        has_scaling_pass = last.is_scaling_pass
        groups = work.groups.of(adapted)
        return ForwardBatch(
            *buffers.tensors(), tuple(segments), groups, has_scaling_pass, is_of_prompts=work is self._prompts
        )

    def _logits(
        self,
        work: _Workspace,
        pieces: list[_Piece],
        batch: ForwardBatch,
        hidden: Tensor,
        results: dict[int, RowResult],
    ) -> None:
        """Logits of the rows that choose a token or that the client wants to see; on the host in one transfer."""
        wanted: list[int] = []
        spans: list[AdaptedRows] = []
        chosen: list[tuple[_Piece, range]] = []
        for piece in pieces:
            request, scalings, num_rows = piece.request, piece.scalings, piece.num_rows
            results[id(request)].scalings = scalings
            if num_rows > 1 and request.frozen is scalings is not None:
                results[id(request)].scalings = scalings.expand(num_rows, -1, -1)
            if not (request.all_logits or request.scheduled.reaches_end):
                continue
            count = num_rows if request.all_logits else 1 + request.scheduled.num_drafted
            if scalings is not None and count < num_rows and request.frozen is not scalings:
                scalings = scalings[-count:]
            rows_of_piece = range(len(wanted), len(wanted) + count)
            spans.append(AdaptedRows(request.mixture, rows_of_piece, scalings))
            chosen.append((piece, rows_of_piece))
            end = piece.first_row + num_rows
            wanted += range(end - count, end)
        if not wanted:
            return
        if len(wanted) == len(hidden):  # every row, as whenever all sequences decode
            logits = self.executor.logits(hidden, batch.adapters)
        else:
            rows = hidden.index_select(0, torch.tensor(wanted, device=self.device))
            logits = self.executor.logits(rows, work.logit_groups.of(spans))
        on_host = logits.cpu().numpy()
        for piece, rows_of_piece in chosen:
            results[id(piece.request)].logits = on_host[rows_of_piece.start : rows_of_piece.stop]


def _separated(requests: Sequence[RowRequest]) -> tuple[list[RowRequest], list[RowRequest]]:
    """Requests whose rows are of their prompts, and those whose rows are of what was generated."""
    prompts = [request for request in requests if request.scheduled.is_of_prompt]
    for scheduled in (request.scheduled for request in prompts):
        assert scheduled.positions.stop <= scheduled.sequence.num_prompt_tokens, "a step goes beyond a prompt's end"
    return prompts, [request for request in requests if not request.scheduled.is_of_prompt]


def _pieces(requests: Sequence[RowRequest], scalings: Mapping[int, Tensor], *, is_scaling_pass: bool) -> list[_Piece]:
    """Rows of a pass, one request's after the other's."""
    pieces, row = [], 0
    for request in requests:
        scheduled = request.scheduled
        sequence = scheduled.sequence
        positions = scheduled.scaling_positions if is_scaling_pass else scheduled.positions
        table = sequence.scaling_blocks if is_scaling_pass else sequence.blocks
        if num_rows := len(positions):
            known = scalings.get(id(request))
            pieces.append(_Piece(request, table, row, num_rows, positions, known, is_scaling_pass))
            row += num_rows
    return pieces


def _adapted_rows(pieces: list[_Piece]) -> list[AdaptedRows]:
    return [AdaptedRows(p.request.mixture, range(p.first_row, p.first_row + p.num_rows), p.scalings) for p in pieces]


def _rows_of_groups(pieces: list[_Piece], groups: list[_Classified]) -> list[AdaptedRows]:
    """The rows of a pass of X-LoRA requests, by what was classified together: its scalings are used as they lie."""
    rows_of = {id(piece.request): range(piece.first_row, piece.first_row + piece.num_rows) for piece in pieces}
    return [
        AdaptedRows(
            group.requests[0].mixture,
            [row for request in group.requests for row in rows_of[id(request)]],
            group.scalings,
        )
        for group in groups
    ]


def _classifier(request: RowRequest) -> Classifier:
    assert request.mixture.xlora is not None
    return request.mixture.xlora.classifier


def _frozen(request: RowRequest) -> Tensor:
    assert request.frozen is not None
    return request.frozen
