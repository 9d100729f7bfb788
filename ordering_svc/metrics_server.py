"""Serves metrics over HTTP, where Prometheus fetches them."""

from __future__ import annotations

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.registry import Collector, CollectorRegistry

from ordering_svc.errors import CannotStart


class MetricsServer:
    """Serves from when it is made until it is closed, in a thread of its own."""

    def __init__(self, host: str, port: int) -> None:
        """Bind the address; port 0 takes a free one.

        Raises:
            CannotStart: it is taken, or not one of this machine.
        """
        self._registry = CollectorRegistry()
        for add in (ProcessCollector, PlatformCollector, GCCollector):
            add(registry=self._registry)
        try:
            self._server, self._thread = start_http_server(port, host, self._registry)
        except OSError as error:
            raise CannotStart(
                f"--metrics-port {port}: {host}:{port} cannot be bound: {error.strerror or error}"
            ) from None
        self.address = f"{f'[{host}]' if ':' in host else host}:{self._server.server_port}"

    def add(self, collector: Collector) -> None:
        """Serve these metrics too."""
        self._registry.register(collector)

    def close(self) -> None:
        """Serve no longer; waits for the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
