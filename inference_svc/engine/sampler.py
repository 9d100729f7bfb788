"""Chooses the next token of each row, one row at a time: a row's choice never depends on the others."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from inference_svc.engine.ranking import largest
from inference_svc.engine.request import Sampling, TokenLogprobs

Logits = NDArray[np.float32]  # [vocab_size]

_FEWEST_RANKED = 64  # tokens to rank first, in the hope that the draw falls among them
_GROWTH = 8  # if it does not, so many times more


class SamplingState:
    """What the choice for one sequence depends on beside its logits."""

    def __init__(self, sampling: Sampling, seed: int | None, prompt_token_ids: Iterable[int]) -> None:
        """`seed` of a sequence that draws; None: any."""
        self.sampling = sampling
        self.random = random.Random(seed)
        self.penalties = Penalties(sampling, prompt_token_ids) if sampling.has_penalties else None
        self.num_ranked = _FEWEST_RANKED  # how many the last draw took; a hint that changes no result

    def note(self, token_id: int) -> None:
        """A token was added to the answer."""
        if self.penalties is not None:
            self.penalties.note(token_id)


class Penalties:
    """Repetition penalty (arXiv 1909.05858) over prompt and answer; presence and frequency over the answer."""

    def __init__(self, sampling: Sampling, prompt_token_ids: Iterable[int]) -> None:
        self._sampling = sampling
        seen = list(dict.fromkeys(prompt_token_ids))
        self._place_of = {token_id: place for place, token_id in enumerate(seen)}
        self._ids = np.array(seen, dtype=np.int64)
        self._counts = np.zeros(len(seen), dtype=np.float32)  # how often, in the answer

    def note(self, token_id: int) -> None:
        """A token was added to the answer."""
        place = self._place_of.setdefault(token_id, len(self._place_of))
        if place == len(self._ids):
            # Twice as much room; until it is taken it stands for a token that is there already.
            self._ids = np.concatenate((self._ids, np.full(max(64, place), token_id, dtype=np.int64)))
            self._counts = np.concatenate((self._counts, np.zeros(max(64, place), dtype=np.float32)))
        self._ids[place] = token_id
        self._counts[place] += 1

    def apply(self, logits: Logits) -> None:
        """Change the logits of seen tokens in place."""
        sampling, count = self._sampling, len(self._place_of)
        ids, counts = self._ids[:count], self._counts[:count]
        values = logits[ids]
        if (penalty := sampling.repetition_penalty) != 1.0:
            values = np.where(values > 0, values / penalty, values * penalty)
        if sampling.presence_penalty or sampling.frequency_penalty:
            taken = sampling.presence_penalty + sampling.frequency_penalty * counts
            values = np.where(counts > 0, values - taken, values)
        logits[ids] = values


def choose(logits: Logits, state: SamplingState, forbidden: Collection[int]) -> int:
    """The next token id from float32 logits [vocab_size], which stay as they are.

    Order as in transformers: penalties, temperature, top-k, top-p, min-p, then one draw.
    """
    if forbidden or state.penalties is not None:
        logits = logits.copy()
    if state.penalties is not None:
        state.penalties.apply(logits)
    if forbidden:
        logits[list(forbidden)] = -np.inf
    if state.sampling.is_greedy:
        return int(logits.argmax())
    with np.errstate(all="ignore"):
        return _draw(logits, state)


def _draw(logits: Logits, state: SamplingState) -> int:
    """One draw from what top-k, top-p and min-p leave.

    A token's weight is exp((logit - largest logit) / temperature) in float64; tokens are ranked by logit, then by id. A
    cut that lies among the first few of them, or a draw that falls there, takes no more than these and the sum of all
    weights: so only a few are ranked, and more if they were too few.
    """
    sampling, uniform = state.sampling, state.random.random()
    best, limit = logits.max(), len(logits)
    cuts = sampling.top_p < 1.0 or sampling.min_p > 0.0
    total = None  # of what top-k leaves; None: only what min-p leaves of it counts, or its own last sum
    if sampling.top_k is not None and sampling.top_k < limit:
        limit = num_ranked = sampling.top_k
    else:
        num_ranked = min(limit, state.num_ranked)
        if sampling.top_p < 1.0 or not cuts:
            total = float(_weights(logits, best, sampling.temperature).sum())
    while True:
        token_ids = largest(logits, num_ranked)
        weights = _weights(logits[token_ids], best, sampling.temperature)
        cumulative = weights.cumsum()
        kept = _num_kept(weights, cumulative, total, sampling)
        reach = float(cumulative[kept - 1]) if cuts or total is None else total
        if kept < num_ranked or num_ranked == limit or (not cuts and uniform * reach < cumulative[-1]):
            break
        num_ranked = min(limit, _GROWTH * num_ranked)
    if cuts:
        state.num_ranked = max(_FEWEST_RANKED, 2 * kept)
    # Rounding must not carry the draw past the last token that has a weight.
    drawn = min(uniform * reach, np.nextafter(cumulative[kept - 1], 0.0))
    place = int(cumulative[:kept].searchsorted(drawn, side="right"))
    return int(token_ids[min(place, kept - 1)])


def _weights(logits: Logits, best: np.float32, temperature: float) -> NDArray[np.float64]:
    weights = logits.astype(np.float64)
    weights -= best
    weights /= temperature
    return np.exp(weights, out=weights)


def _num_kept(
    weights: NDArray[np.float64], cumulative: NDArray[np.float64], total: float | None, sampling: Sampling
) -> int:
    """How many of the first tokens top-p and min-p leave, at least one; all of those given if the cut comes later."""
    kept = len(weights)
    if sampling.top_p < 1.0:
        # A token stays while those before it do not reach top_p yet: the one that crosses it is kept.
        reach = sampling.top_p * (float(cumulative[-1]) if total is None else total)
        kept = min(kept, 1 + int(cumulative.searchsorted(reach, side="left")))
    if sampling.min_p > 0.0:
        kept = min(kept, max(1, int((-weights).searchsorted(-sampling.min_p, side="right"))))
    return kept


def token_logprobs(logits: Logits, token_id: int, num_top: int) -> TokenLogprobs:
    """Log probability of a token and of the most probable ones, before penalties and temperature."""
    best = logits.max()
    normalizer = best + np.log(np.exp(logits - best).sum())
    top = largest(logits, num_top)
    pairs = zip(top.tolist(), (logits[top] - normalizer).tolist(), strict=True)
    return TokenLogprobs(token_id, float(logits[token_id] - normalizer), tuple(pairs))
