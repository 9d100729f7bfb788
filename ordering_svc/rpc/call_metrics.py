"""Calls by method and status, under the names that gRPC's metrics have elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import Counter, Histogram
from prometheus_client.registry import CollectorRegistry

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass(slots=True)
class Call:
    """A call under way."""

    code: str = "CANCELLED"  # what it is if nobody says how it ended


class CallMetrics:
    """Counts and times calls; names as in go-grpc-prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["grpc_type", "grpc_service", "grpc_method"]
        self._started = Counter(
            "grpc_server_started", "Calls that came in, finished or not.", labels, registry=self.registry
        )
        self._handled = Counter(
            "grpc_server_handled", "Calls that ended, by status.", [*labels, "grpc_code"], registry=self.registry
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "How long calls took; a stream as long as it was open.",
            labels,
            buckets=_BUCKETS,
            registry=self.registry,
        )

    @contextmanager
    def measured(self, method: str, *, streams: bool) -> Iterator[Call]:
        """Measure a call of `/package.Service/Method`, one of ours; whoever knows its status writes it down."""
        service, _, name = method.removeprefix("/").partition("/")
        labels = "server_stream" if streams else "unary", service, name
        call, began = Call(), time.perf_counter()
        self._started.labels(*labels).inc()
        try:
            yield call
        finally:
            self._handled.labels(*labels, call.code).inc()
            self._seconds.labels(*labels).observe(time.perf_counter() - began)
