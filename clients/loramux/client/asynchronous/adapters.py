"""`client.adapters` of the asynchronous client."""

from __future__ import annotations

from loramux.client import inference_calls
from loramux.client.adapters import ActiveAdapters, Adapter, AdapterChoice, FollowedOrdering
from loramux.client.asynchronous.adapter_watch import AsyncAdapterWatch
from loramux.client.asynchronous.connection import AsyncConnection


class AsyncAdapterApi:
    """Loads, unloads and activates adapters while requests run. Every method raises LoramuxError."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def load(self, name: str, source: str, *, replace: bool = False, pinned: bool = False) -> Adapter:
        """Makes an adapter resident; `source` is a folder inside the service's allowed roots, or a hub id."""
        return await self._connection.run(inference_calls.load_adapter(name, source, replace, None, pinned))

    async def replace(self, name: str, source: str, *, expected_digest: str, pinned: bool = False) -> Adapter:
        """Replaces the resident adapter of this digest; raises Aborted if it is another by now."""
        return await self._connection.run(inference_calls.load_adapter(name, source, True, expected_digest, pinned))

    async def unload(self, name: str, *, expected_digest: str | None = None) -> Adapter:
        """Takes an adapter away from later requests; those that run keep it. With a digest: only that version."""
        return await self._connection.run(inference_calls.unload_adapter(name, expected_digest))

    async def pin(self, name: str) -> Adapter:
        """Keeps an adapter from being evicted to make room."""
        return await self._connection.run(inference_calls.pin_adapter(name))

    async def unpin(self, name: str) -> Adapter:
        """Lets an adapter be evicted again."""
        return await self._connection.run(inference_calls.unpin_adapter(name))

    def watch(self, resume_token: str | None = None) -> AsyncAdapterWatch:
        """What is resident, then every change; with the token of an earlier update, the changes since."""
        return AsyncAdapterWatch(self._connection, resume_token)

    async def followed(self) -> tuple[FollowedOrdering, ...]:
        """The orderings that the service follows, and how that goes."""
        return await self._connection.run(inference_calls.followed_orderings())

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
