"""What a service serves as metrics, parsed."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

Samples = Mapping[tuple[str, tuple[str, ...]], float]


def read_metrics(address: str) -> Samples:
    """Samples by name and label values, these in the order of the labels' names."""
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        return parsed_metrics(answer.read().decode())


def parsed_metrics(text: str) -> Samples:
    """The same of a text."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
