"""`client.adapters` of the blocking client."""

from __future__ import annotations

from loramux.client import inference_calls
from loramux.client.adapters import ActiveAdapters, Adapter, AdapterChoice, FollowedOrdering
from loramux.client.blocking.adapter_watch import AdapterWatch
from loramux.client.blocking.connection import Connection


class AdapterApi:
    """Loads, unloads and activates adapters while requests run. Every method raises LoramuxError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def load(self, name: str, source: str, *, replace: bool = False, pinned: bool = False) -> Adapter:
        """Makes an adapter resident; `source` is a folder inside the service's allowed roots, or a hub id."""
        return self._connection.run(inference_calls.load_adapter(name, source, replace, None, pinned))

    def replace(self, name: str, source: str, *, expected_digest: str, pinned: bool = False) -> Adapter:
        """Replaces the resident adapter of this digest; raises Aborted if it is another by now."""
        return self._connection.run(inference_calls.load_adapter(name, source, True, expected_digest, pinned))

    def unload(self, name: str, *, expected_digest: str | None = None) -> Adapter:
        """Takes an adapter away from later requests; those that run keep it. With a digest: only that version."""
        return self._connection.run(inference_calls.unload_adapter(name, expected_digest))

    def pin(self, name: str) -> Adapter:
        """Keeps an adapter from being evicted to make room."""
        return self._connection.run(inference_calls.pin_adapter(name))

    def unpin(self, name: str) -> Adapter:
        """Lets an adapter be evicted again."""
        return self._connection.run(inference_calls.unpin_adapter(name))

    def watch(self, resume_token: str | None = None) -> AdapterWatch:
        """What is resident, then every change; with the token of an earlier update, the changes since."""
        return AdapterWatch(self._connection, resume_token)

    def followed(self) -> tuple[FollowedOrdering, ...]:
        """The orderings that the service follows, and how that goes."""
        return self._connection.run(inference_calls.followed_orderings())

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
