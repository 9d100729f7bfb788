"""Rows of a pass, grouped by the adapters that change them."""

from __future__ import annotations

import torch

from inference_svc.adapters.bank import AdapterBank
from inference_svc.adapters.classifier import Classifier, XLoraConfig
from inference_svc.adapters.selection import Mixture, WeightedBank, XLoraMixture
from inference_svc.engine.adapter_groups import AdaptedRows, AdapterGroups

CPU = torch.device("cpu")


def bank(digest: str) -> AdapterBank:
    return AdapterBank(digest, ("a", "b"), {}, {})


def mixture(of: AdapterBank) -> Mixture:
    classifier = Classifier(XLoraConfig(4, "m"), 1, 2, (torch.zeros(2, 4),), (None,))
    return Mixture((), XLoraMixture(of, classifier))


def test_rows_of_a_bank_ascend_with_their_scalings_however_requests_were_classified() -> None:
    of = bank("d")
    scalings = torch.arange(10.0).reshape(5, 1, 2)
    # Requests 0 and 2 have one configuration, request 1 overrides it: what is classified together comes together.
    spans = [
        AdaptedRows(mixture(of), [0, 1, 4], scalings[[0, 1, 4]]),
        AdaptedRows(mixture(of), [2, 3], scalings[[2, 3]]),
    ]
    (group,) = AdapterGroups(torch.float32, CPU).of(spans)
    assert group.rows.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(group.scalings, scalings)


def test_banks_come_in_the_order_of_their_digests() -> None:
    first, second = (Mixture((WeightedBank(bank(digest), 0.5),), None) for digest in ("b", "a"))
    groups = AdapterGroups(torch.float32, CPU).of(
        [AdaptedRows(first, range(2), None), AdaptedRows(second, range(2, 3), None)]
    )
    assert [(group.bank.digest, group.rows.tolist()) for group in groups] == [("a", [2]), ("b", [0, 1])]
    assert groups[1].scalings.flatten().tolist() == [0.5, 0.5]
