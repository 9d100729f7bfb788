"""How far distributions lie from those of the reference, added up text by text."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

MAX_MEAN_KL = 1e-3  # nats
MIN_TOP1 = 0.99
MAX_SCALING_ERROR = 1e-2


@dataclass(slots=True)
class Divergence:
    """Of one variant from the reference."""

    variant: str
    kl: list[Tensor] = field(default_factory=list)  # float64 [num_positions] each
    same_top: list[Tensor] = field(default_factory=list)  # bool, the same
    scaling_errors: list[Tensor] = field(default_factory=list)

    def add(self, reference: Tensor, logprobs: Tensor, known: Tensor | None = None) -> None:
        """Positions of log probabilities [num_positions, vocab_size]; what is not `known` counts as right."""
        p = reference.double()
        difference = p - logprobs.double()
        if known is not None:
            difference = difference.masked_fill(~known, 0.0)
        self.kl.append((p.exp() * difference).sum(-1))
        self.same_top.append(reference.argmax(-1) == logprobs.argmax(-1))

    def add_scalings(self, reference: Tensor, scalings: Tensor) -> None:
        """Scalings of the same shape."""
        self.scaling_errors.append((reference - scalings).abs().flatten())

    @property
    def num_positions(self) -> int:
        """How many were compared."""
        return sum(map(len, self.kl))

    @property
    def mean_kl(self) -> float:
        """Mean of KL(reference || variant) over positions, in nats."""
        return float(torch.cat(self.kl).mean())

    @property
    def top1(self) -> float:
        """Share of positions at which the most probable token is the same."""
        return float(torch.cat(self.same_top).double().mean())

    @property
    def scaling_error(self) -> tuple[float, float] | None:
        """The largest and the mean error of a scaling; None without X-LoRA."""
        if not self.scaling_errors:
            return None
        errors = torch.cat(self.scaling_errors)
        return float(errors.max()), float(errors.mean())

    @property
    def is_within_bounds(self) -> bool:
        """Good enough to be served."""
        error = self.scaling_error
        return (
            self.mean_kl <= MAX_MEAN_KL and self.top1 >= MIN_TOP1 and (error is None or error[0] <= MAX_SCALING_ERROR)
        )

    def summary(self) -> dict[str, object]:
        """The figures."""
        kl = torch.cat(self.kl)
        error = self.scaling_error
        return {
            "variant": self.variant,
            "positions": self.num_positions,
            "mean_kl": self.mean_kl,
            "p99_kl": float(kl.quantile(0.99)),
            "max_kl": float(kl.max()),
            "top1": self.top1,
            "max_scaling_error": None if error is None else error[0],
            "mean_scaling_error": None if error is None else error[1],
        }
