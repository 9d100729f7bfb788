"""An answer in the making: turns logits into tokens, tokens into text, and knows when to stop."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference_svc.adapters.resident import Lease
from inference_svc.adapters.selection import Mixture
from inference_svc.engine.freezing import ScalingsFreezer
from inference_svc.engine.output_stream import OutputStream
from inference_svc.engine.request import (
    Finished,
    FinishReason,
    GenerationRequest,
    Output,
    ScalingsChunk,
    ScalingsDetail,
    TokenLogprobs,
)
from inference_svc.engine.sampler import SamplingState, choose, token_logprobs
from inference_svc.errors import InferenceError
from inference_svc.scheduling.sequence import Sequence
from inference_svc.tokenization.incremental import IncrementalDetokenizer, StopStrings
from inference_svc.tokenization.tokenizer import ModelTokenizer


class Answer:
    """One accepted request: its sequence, its lease on adapters, its stream, and what it has said so far."""

    def __init__(
        self,
        request: GenerationRequest,
        sequence: Sequence,
        lease: Lease,
        mixture: Mixture,
        stream: OutputStream,
        tokenizer: ModelTokenizer,
        seed: int | None,
        *,
        is_capped_by_context: bool,
    ) -> None:
        self.request = request
        self.sequence = sequence
        self.lease = lease
        self.mixture = mixture  # the lease's, as the request wants it
        self.freezer = ScalingsFreezer(sequence.granularity, sequence.num_prompt_tokens)
        self.stream = stream
        self._eos_token_ids = tokenizer.eos_token_ids
        self._detokenizer = IncrementalDetokenizer(tokenizer, continues_text=not request.begins_text)
        self._stop_strings = StopStrings(request.stopping.stop)
        self._is_capped_by_context = is_capped_by_context
        self._sampling = SamplingState(request.sampling, seed, request.prompt_token_ids)
        self._prompt_tokens: list[TokenLogprobs] = []
        self._scalings: list[ScalingsChunk] = []
        self.finish_reason: FinishReason | None = None
        self.arrived = time.perf_counter()
        self.last_token: float | None = None  # when the newest token was chosen, by the same clock

    @property
    def kind(self) -> str:
        """What the request runs with, in a word."""
        if self.mixture.xlora is not None:
            return "xlora"
        return "lora" if self.mixture.constant else "base"

    def outcome(self, error: InferenceError | None) -> str:
        """How the request ended, in a word."""
        if error is not None:
            return error.reason.lower()
        return "cancelled" if self.finish_reason is None else self.finish_reason.value

    @property
    def wants_prompt_logits(self) -> bool:
        """Logits of every prompt row are asked for, and the prompt is still being computed."""
        return self.request.response.prompt_logprobs is not None and self.sequence.num_generated == 0

    @property
    def wants_scalings(self) -> bool:
        """Scalings of every position are asked for."""
        return self.request.response.scalings is not ScalingsDetail.NONE

    def add_prompt_logits(self, first_position: int, logits: NDArray[np.float32]) -> None:
        """Take the logits [num_tokens, vocab_size] of prompt rows: row i tells the probability of token i + 1."""
        num_top = self.request.response.prompt_logprobs
        assert num_top is not None
        prompt = self.sequence.token_ids
        known = self._num_reported(first_position)
        first_position, logits = first_position + known, logits[known:]
        for position, row in enumerate(logits, start=first_position):
            if position + 1 < self.sequence.num_prompt_tokens:
                self._prompt_tokens.append(token_logprobs(row, prompt[position + 1], num_top))

    def add_scalings(self, first_position: int, scalings: Tensor) -> None:
        """Take the scalings [num_tokens, num_layers, num_experts] of rows."""
        known = self._num_reported(first_position)
        first_position, scalings = first_position + known, scalings[known:]
        if not len(scalings):
            return
        if self.request.response.scalings is ScalingsDetail.MEAN:
            scalings = scalings.mean(dim=1, keepdim=True)
        dtype = torch.float16 if self.request.response.half_precision else torch.float32
        self._scalings.append(ScalingsChunk(first_position, scalings.to(dtype).cpu().numpy()))

    def _num_reported(self, first_position: int) -> int:
        """How many positions, from one on, a preemption made necessary to compute a second time."""
        return max(0, self.sequence.num_reported - first_position)

    def choose_next(self, logits: NDArray[np.float32]) -> bool:
        """Choose a token from logits [vocab_size] and send it; True if the answer is complete."""
        request, sequence = self.request, self.sequence
        too_short = sequence.num_generated < request.stopping.min_tokens
        token_id = choose(logits, self._sampling, self._eos_token_ids if too_short else ())
        sequence.token_ids.append(token_id)
        self._sampling.note(token_id)
        num_top = request.response.logprobs
        token = TokenLogprobs(token_id) if num_top is None else token_logprobs(logits, token_id, num_top)
        is_eos = token_id in self._eos_token_ids and not request.stopping.ignore_eos
        # Once the answer is complete, what was held back for a character or a stop string goes out too.
        is_last = is_eos or len(sequence.token_ids) >= sequence.max_total_tokens
        text = "" if is_eos else self._detokenizer.push([token_id])
        if is_last:
            text += self._detokenizer.finish()
        stopped = self._stop_strings.push(text)
        text = stopped.emit
        if is_last and stopped.matched is None:
            text += self._stop_strings.finish()
        self._send(text, token)
        if stopped.matched is not None:
            return self._finish(FinishReason.STOP, stopped.matched)
        if is_eos:
            return self._finish(FinishReason.EOS)
        if is_last:
            return self._finish(FinishReason.CONTEXT if self._is_capped_by_context else FinishReason.MAX_TOKENS)
        return False

    def _send(self, text: str, token: TokenLogprobs) -> None:
        output = Output(text, (token,), tuple(self._prompt_tokens), tuple(self._scalings))
        self._prompt_tokens, self._scalings = [], []
        self.stream.put(output)

    def _finish(self, reason: FinishReason, stop: str | None = None) -> bool:
        sequence = self.sequence
        self.finish_reason = reason
        self.stream.put(
            Finished(
                reason,
                stop,
                sequence.num_prompt_tokens,
                sequence.num_generated,
                self.lease.applied,
                sequence.num_cached_prompt_tokens or 0,
            )
        )
        return True
