"""`client.adapters` of the blocking client."""

from __future__ import annotations

from loramux.client import inference_calls
from loramux.client.adapters import ActiveAdapters, Adapter, AdapterChoice
from loramux.client.blocking.connection import Connection


class AdapterApi:
    """Loads, unloads and activates adapters while requests run. Every method raises LoramuxError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def load(self, name: str, source: str, *, replace: bool = False) -> Adapter:
        """Makes an adapter resident; `source` is a folder inside the service's allowed roots, or a hub id."""
        return self._connection.run(inference_calls.load_adapter(name, source, replace))

    def unload(self, name: str) -> Adapter:
        """Takes an adapter away from later requests; those that run keep it."""
        return self._connection.run(inference_calls.unload_adapter(name))

    def get(self, name: str) -> Adapter:
        """One resident adapter."""
        return self._connection.run(inference_calls.get_adapter(name))

    def list(self) -> tuple[Adapter, ...]:
        """All resident adapters, by name."""
        return self._connection.run_pages(inference_calls.list_adapters)

    def activate(self, adapters: AdapterChoice) -> ActiveAdapters:
        """Replaces the active default for later requests, all at once or not at all; `BASE` for none."""
        return self._connection.run(inference_calls.activate_adapters(adapters))

    def active(self) -> ActiveAdapters:
        """The active default."""
        return self._connection.run(inference_calls.active_adapters())
