"""Chooses the next token of each row, one row at a time: a row's choice never depends on the others."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_svc.engine.request import Sampling, TokenLogprobs


@dataclass(frozen=True, slots=True, eq=False)
class SamplingState:
    """What the choice for one sequence depends on beside its logits."""

    sampling: Sampling
    random: random.Random
    prompt_token_ids: frozenset[int]
    generated: Counter[int]  # token id -> how often, in the answer


def choose(logits: Tensor, state: SamplingState, forbidden: frozenset[int]) -> int:
    """The next token id from float32 logits [vocab_size].

    Order as in transformers: penalties, temperature, top-k, top-p, min-p, then one draw.
    """
    sampling = state.sampling
    if forbidden or sampling.has_penalties:
        logits = logits.clone()
    if sampling.has_penalties:
        _penalize(logits, state)
    if forbidden:
        logits[list(forbidden)] = float("-inf")
    if sampling.is_greedy:
        return int(logits.argmax())
    ordered, token_ids = torch.sort(logits.double() / sampling.temperature, descending=True, stable=True)
    probabilities = torch.softmax(ordered, dim=-1)
    keep = len(probabilities) if sampling.top_k is None else min(sampling.top_k, len(probabilities))
    probabilities = probabilities[:keep] / probabilities[:keep].sum()
    if sampling.top_p < 1.0:
        # A token stays while the tokens before it do not reach top_p yet: the one that crosses it is kept.
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities[: max(1, int((before < sampling.top_p).sum()))]
    if sampling.min_p > 0.0:
        probabilities = probabilities[: max(1, int((probabilities >= sampling.min_p * probabilities[0]).sum()))]
    cumulative = probabilities.cumsum(-1)
    drawn = torch.searchsorted(cumulative, state.random.random() * float(cumulative[-1]), right=True)
    return int(token_ids[min(int(drawn), len(probabilities) - 1)])


def _penalize(logits: Tensor, state: SamplingState) -> None:
    """Repetition penalty (arXiv 1909.05858) over prompt and answer; presence and frequency over the answer."""
    sampling = state.sampling
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(state.prompt_token_ids | state.generated.keys()), device=logits.device)
        values = logits[seen]
        logits[seen] = torch.where(
            values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty
        )
    if state.generated and (sampling.presence_penalty or sampling.frequency_penalty):
        ids = torch.tensor(list(state.generated.keys()), device=logits.device)
        counts = torch.tensor(list(state.generated.values()), device=logits.device, dtype=logits.dtype)
        logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts


def token_logprobs(logits: Tensor, token_id: int, num_top: int) -> TokenLogprobs:
    """Log probability of a token and of the most probable ones, before penalties and temperature."""
    logprobs = torch.log_softmax(logits, dim=-1)
    top = torch.topk(logprobs, num_top)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return TokenLogprobs(token_id, float(logprobs[token_id]), tuple(pairs))
