"""What packed types have in common: whole numbers, with a scale and perhaps a minimum for a few neighbours each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Blocks of one type, taken apart: a value is code * scale + minimum, in float32 and in this order."""

    codes: Tensor  # int8 or uint8 [n, block]
    scales: Tensor  # float32 [n, groups]: of neighbours, equally many each
    minima: Tensor | None = None  # float32 [n, groups]; None: the type has none

    def values(self) -> Tensor:
        """float32 [n, block]."""
        # In place, and widened first: a product of two types makes a copy of its own. Not addcmul: it may round once.
        count, groups = self.scales.shape  # never -1 in a shape: it has no meaning where there are no blocks
        values = (
            self.codes.float().reshape(count, groups, self.codes.shape[1] // groups).mul_(self.scales.unsqueeze(-1))
        )
        if self.minima is not None:
            values.add_(self.minima.unsqueeze(-1))
        return values.reshape(self.codes.shape)
