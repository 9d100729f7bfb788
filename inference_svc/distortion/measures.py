"""What two runs of the same text differ by, position by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from inference_svc.distortion.passes import Pass

ROWS = 64  # positions at once: of a large vocabulary one row in float64 takes a megabyte


@dataclass(slots=True)
class Positions:
    """One entry for each position of each text, in their order."""

    text: list[int] = field(default_factory=list)  # which text, from 0
    position: list[int] = field(default_factory=list)
    token_id: list[int] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)  # nats, of the compared next-token distribution from the reference's
    agrees: list[bool] = field(default_factory=list)  # the most likely next token is the same
    # Log probability that each model gives to the token that comes next in the text; None at its end.
    reference_logprob: list[float | None] = field(default_factory=list)
    compared_logprob: list[float | None] = field(default_factory=list)
    scaling_drift: list[float] = field(default_factory=list)  # mean over layers and experts; empty without X-LoRA


@dataclass(frozen=True, slots=True)
class Summary:
    """Over all positions of all texts."""

    positions: int
    mean_kl: float
    median_kl: float
    p99_kl: float
    max_kl: float
    top1_agreement: float  # share of positions
    reference_perplexity: float  # of the next tokens in the texts
    compared_perplexity: float


@dataclass(frozen=True, slots=True)
class ScalingsDrift:
    """How far the scalings of an X-LoRA move."""

    experts: tuple[str, ...]
    mean: float  # of the absolute differences, over positions, layers and experts
    max: float
    top_expert_agreement: float  # share of positions and layers in which the same expert is the largest
    by_layer: list[list[float]]  # [num_layers][num_experts], mean absolute difference over positions


class Measures:
    """Collects the differences of text after text."""

    def __init__(self) -> None:
        self.positions = Positions()
        self._drift_sum: NDArray[np.float64] | None = None
        self._drift_max = 0.0
        self._same_top = 0

    def add(self, text: int, token_ids: Sequence[int], reference: Pass, compared: Pass) -> None:
        """The two runs of one text.

        Raises:
            ValueError: logits that are not finite; the message says which.
        """
        found = self.positions
        for first in range(0, len(token_ids), ROWS):
            rows = slice(first, first + ROWS)
            expected = _log_probabilities(reference.logits[rows], "reference")
            actual = _log_probabilities(compared.logits[rows], "compared")
            found.kl += (np.exp(expected) * (expected - actual)).sum(axis=1).tolist()
            found.agrees += (expected.argmax(axis=1) == actual.argmax(axis=1)).tolist()
            following = list(token_ids[first + 1 : first + 1 + ROWS])
            at = np.arange(len(following)), following
            end: list[float | None] = [None] * (len(expected) - len(following))
            found.reference_logprob += expected[at].tolist() + end
            found.compared_logprob += actual[at].tolist() + end
        found.text += [text] * len(token_ids)
        found.position += range(len(token_ids))
        found.token_id += token_ids
        if reference.scalings is not None and compared.scalings is not None:
            self._add_scalings(reference.scalings, compared.scalings)

    def _add_scalings(self, expected: NDArray[np.float32], actual: NDArray[np.float32]) -> None:
        drift = np.abs(actual.astype(np.float64) - expected)
        self.positions.scaling_drift += drift.mean(axis=(1, 2)).tolist()
        total = drift.sum(axis=0)
        self._drift_sum = total if self._drift_sum is None else self._drift_sum + total
        self._drift_max = max(self._drift_max, float(drift.max()))
        self._same_top += int((expected.argmax(axis=2) == actual.argmax(axis=2)).sum())

    def summary(self) -> Summary:
        """All positions together; there is one at least."""
        found = self.positions
        # Rounding makes a distance of nothing a little less than nothing.
        kl = np.maximum(np.array(found.kl), 0.0)
        return Summary(
            positions=len(kl),
            mean_kl=float(kl.mean()),
            median_kl=float(np.median(kl)),
            p99_kl=float(np.quantile(kl, 0.99)),
            max_kl=float(kl.max()),
            top1_agreement=float(np.mean(found.agrees)),
            reference_perplexity=_perplexity(found.reference_logprob),
            compared_perplexity=_perplexity(found.compared_logprob),
        )

    def drift(self, experts: tuple[str, ...]) -> ScalingsDrift | None:
        """Of the scalings; None if there were none."""
        if self._drift_sum is None:
            return None
        count = len(self.positions.kl)
        by_layer = self._drift_sum / count
        return ScalingsDrift(
            experts=experts,
            mean=float(by_layer.mean()),
            max=self._drift_max,
            top_expert_agreement=self._same_top / (count * len(by_layer)),
            by_layer=by_layer.tolist(),
        )


def _log_probabilities(logits: NDArray[np.float32], whose: str) -> NDArray[np.float64]:
    """Log softmax along the vocabulary, in float64."""
    if not np.isfinite(logits).all():
        raise ValueError(f"the {whose} model gives logits that are not finite")
    return torch.log_softmax(torch.from_numpy(logits).double(), dim=1).numpy()


def _perplexity(logprobs: Sequence[float | None]) -> float:
    """exp of the mean negative log probability; 1 where nothing was predicted."""
    known = [value for value in logprobs if value is not None]
    return float(np.exp(-np.mean(known))) if known else 1.0
