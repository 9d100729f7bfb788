"""A store of which every call is timed."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, cast

from prometheus_client import Histogram
from prometheus_client.registry import CollectorRegistry

from ordering_svc.persistence.store import OrderingStore

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class StoreMetrics:
    """How long the calls of a store take, by method and whether they raised."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "loramux_ordering_store_seconds",
            "Calls of the database, each one transaction.",
            ["operation", "outcome"],
            buckets=_BUCKETS,
            registry=self.registry,
        )

    def observe(self, operation: str, outcome: str, seconds: float) -> None:
        """Note a call; the outcome is `ok` or `error`."""
        self._seconds.labels(operation, outcome).observe(seconds)


def measured(store: OrderingStore, metrics: StoreMetrics) -> OrderingStore:
    """The same store, its calls measured."""
    return cast(OrderingStore, _Measured(store, metrics))


class _Measured:
    """Stands for a store; whatever that has can be called here."""

    def __init__(self, store: OrderingStore, metrics: StoreMetrics) -> None:
        self._store = store
        self._metrics = metrics

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call: Callable[..., Any] = getattr(self._store, name)

        @functools.wraps(call)
        def timed(*arguments: Any, **options: Any) -> Any:
            outcome, began = "error", time.perf_counter()
            try:
                answer = call(*arguments, **options)
                outcome = "ok"
                return answer
            finally:
                self._metrics.observe(name, outcome, time.perf_counter() - began)

        setattr(self, name, timed)  # found at once from now on
        return timed
