"""`client.adapters` of the asynchronous client."""

from __future__ import annotations

from loramux.client import inference_calls
from loramux.client.adapters import ActiveAdapters, Adapter, AdapterChoice
from loramux.client.asynchronous.connection import AsyncConnection


class AsyncAdapterApi:
    """Loads, unloads and activates adapters while requests run. Every method raises LoramuxError."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def load(self, name: str, source: str, *, replace: bool = False) -> Adapter:
        """Makes an adapter resident; `source` is a folder inside the service's allowed roots, or a hub id."""
        return await self._connection.run(inference_calls.load_adapter(name, source, replace))

    async def unload(self, name: str) -> Adapter:
        """Takes an adapter away from later requests; those that run keep it."""
        return await self._connection.run(inference_calls.unload_adapter(name))

    async def get(self, name: str) -> Adapter:
        """One resident adapter."""
        return await self._connection.run(inference_calls.get_adapter(name))

    async def list(self) -> tuple[Adapter, ...]:
        """All resident adapters, by name."""
        return await self._connection.run_pages(inference_calls.list_adapters)

    async def activate(self, adapters: AdapterChoice) -> ActiveAdapters:
        """Replaces the active default for later requests, all at once or not at all; `BASE` for none."""
        return await self._connection.run(inference_calls.activate_adapters(adapters))

    async def active(self) -> ActiveAdapters:
        """The active default."""
        return await self._connection.run(inference_calls.active_adapters())
