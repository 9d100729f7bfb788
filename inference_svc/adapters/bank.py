"""A bank: the matrices of one LoRA adapter, or of all adapters of an X-LoRA mixture, side by side.

With A = cat(A_i) and B = cat(B_i * alpha_i / r_i), the sum over adapters i of B_i A_i (s_i x) alpha_i / r_i is
B ((A x) * s[expert_of_rank]): one pair of products whatever the number of adapters and their ranks, exact because A is
linear and s_i is one number a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LinearDelta:
    """What a bank adds to one linear layer."""

    a: Tensor  # [sum_rank, in_features]
    b: Tensor  # [out_features, sum_rank], with each adapter's scale (alpha / r) folded in
    expert_of_rank: Tensor  # int64 [sum_rank], which adapter a rank belongs to
    # float32 [out_features]: DoRA changes the base's own output by this factor less one (a bank of one adapter only).
    base_factor: Tensor | None = None
    # What `a` and `b` together were multiplied by when they were made halves. Only the executor that did so, and that
    # has prepared the bank, can run such a bank.
    factor: float = 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        tensors = (self.a, self.b, self.expert_of_rank, self.base_factor)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class AdapterBank:
    """The deltas of one or more adapters, by full module path (`model.layers.0.self_attn.q_proj`)."""

    digest: str  # names the content: orders banks, keys caches
    experts: tuple[str, ...]  # adapter names; one for a plain LoRA
    deltas: Mapping[str, LinearDelta]
    scaling_rows: Mapping[str, int]  # module path -> row of the classifier's layer axis; empty for a plain LoRA
    nbytes: int = field(init=False)  # of the tensors: every load asks all banks that are resident

    def __post_init__(self) -> None:
        object.__setattr__(self, "nbytes", sum(delta.nbytes for delta in self.deltas.values()))
