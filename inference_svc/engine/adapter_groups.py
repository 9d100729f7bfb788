"""Groups the rows of a pass by the adapters that change them; what stays from step to step is built once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from inference_svc.adapters.bank import AdapterBank
from inference_svc.adapters.selection import Mixture
from inference_svc.layers.batch import AdapterRows


@dataclass(slots=True, eq=False)
class AdaptedRows:
    """Rows of a pass, and what changes them."""

    mixture: Mixture
    rows: Sequence[int]
    # [len(rows) or 1, num_layers, num_experts]: what the classifier gave; None: no X-LoRA, or its scaling pass.
    scalings: Tensor | None

    def is_same_as(self, other: AdaptedRows) -> bool:
        """The same rows with the same objects: nothing that was built for the one has to be built for the other."""
        return self.mixture is other.mixture and self.scalings is other.scalings and self.rows == other.rows


class AdapterGroups:
    """Builds the groups of pass after pass, and gives out the last ones again for as long as nothing changes."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        """`dtype` is that of scalings."""
        self._dtype = dtype
        self._device = device
        self._last: Sequence[AdaptedRows] = ()
        self._groups: tuple[AdapterRows, ...] = ()

    def of(self, spans: Sequence[AdaptedRows]) -> tuple[AdapterRows, ...]:
        """One group for each bank, in the order of digests."""
        if len(spans) != len(self._last) or not all(map(AdaptedRows.is_same_as, spans, self._last)):
            self._groups = self._build(spans)
            self._last = spans
        return self._groups

    def _build(self, spans: Sequence[AdaptedRows]) -> tuple[AdapterRows, ...]:
        banks: dict[str, AdapterBank] = {}
        rows: dict[str, list[int]] = {}
        constant: dict[str, list[float]] = {}
        computed: dict[str, list[Tensor]] = {}
        for span in spans:
            for weighted in span.mixture.constant:
                bank = weighted.bank
                banks[bank.digest] = bank
                rows.setdefault(bank.digest, []).extend(span.rows)
                constant.setdefault(bank.digest, []).extend([weighted.weight] * len(span.rows))
            if span.mixture.xlora is not None and (values := self._values(span)) is not None:
                bank = span.mixture.xlora.bank
                banks[bank.digest] = bank
                rows.setdefault(bank.digest, []).extend(span.rows)
                computed.setdefault(bank.digest, []).append(values)
        return tuple(
            _ascending(
                banks[digest],
                rows[digest],
                self._constant(constant[digest]) if digest in constant else _joined(computed[digest]),
            )
            for digest in sorted(banks)
        )

    def _constant(self, weights: list[float]) -> Tensor:
        return torch.tensor(weights, device=self._device, dtype=self._dtype).reshape(-1, 1, 1)

    def _values(self, span: AdaptedRows) -> Tensor | None:
        """What a mixture's adapters count with, [len(rows), num_layers, num_experts]; None: not at all."""
        assert span.mixture.xlora is not None
        classifier = span.mixture.xlora.classifier
        scalings = span.scalings
        if scalings is None:
            if classifier.config.scaling_pass_value == 0.0:
                return None
            scalings = classifier.scaling_pass_scalings(self._device).unsqueeze(0)
        values = scalings.to(self._dtype)
        if values.shape[0] != len(span.rows):
            values = values.expand(len(span.rows), -1, -1)
        weight = classifier.config.global_scaling_weight
        return values if weight == 1.0 else values * weight


def _ascending(bank: AdapterBank, rows: list[int], scalings: Tensor) -> AdapterRows:
    """Requests that override a mixture are classified apart, and may come in another order than their rows."""
    indices = torch.tensor(rows, device=scalings.device)
    if any(later < earlier for earlier, later in pairwise(rows)):
        indices, order = indices.sort()
        scalings = scalings[order]
    return AdapterRows(bank, indices, scalings)


def _joined(values: list[Tensor]) -> Tensor:
    return values[0].contiguous() if len(values) == 1 else torch.cat(values)
