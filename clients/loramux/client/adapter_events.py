"""What a watch of the adapters tells: everything at first, then every change."""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass

from loramux.client.adapters import ActiveAdapters, Adapter, active_from_proto, adapter_from_proto
from loramux.client.errors import broken_answer
from loramux.inference.v1 import adapter_service_pb2


class AdapterEventKind(enum.StrEnum):
    """What happened to an adapter."""

    LOADED = "loaded"
    REPLACED = "replaced"
    UNLOADED = "unloaded"
    EVICTED = "evicted"
    ACTIVATED = "activated"
    PINNED = "pinned"
    UNPINNED = "unpinned"


@dataclass(frozen=True, slots=True)
class AdaptersSnapshot:
    """Everything that is resident; replaces whatever was known."""

    adapters: tuple[Adapter, ...]
    active: ActiveAdapters
    generation: int
    resume_token: str


@dataclass(frozen=True, slots=True)
class AdapterEvent:
    """One change; `adapter` is None for ACTIVATED, `active` for everything else."""

    kind: AdapterEventKind
    generation: int
    event_time: datetime.datetime
    adapter: Adapter | None
    active: ActiveAdapters | None
    resume_token: str


AdapterUpdate = AdaptersSnapshot | AdapterEvent


def update_from_proto(message: adapter_service_pb2.WatchAdaptersResponse) -> AdapterUpdate:
    """Raises Internal for an update that this client does not know."""
    if message.WhichOneof("update") == "snapshot":
        snapshot = message.snapshot
        return AdaptersSnapshot(
            tuple(map(adapter_from_proto, snapshot.adapters)),
            active_from_proto(snapshot.active),
            snapshot.generation,
            message.resume_token,
        )
    event = message.event
    name = adapter_service_pb2.AdapterEventKind.Name(event.kind) if event.kind in range(1, 8) else ""
    if not name:
        raise broken_answer(f"the service sent the unknown event {event.kind}: is it newer than this client?")
    return AdapterEvent(
        AdapterEventKind(name.removeprefix("ADAPTER_EVENT_KIND_").lower()),
        event.generation,
        event.event_time.ToDatetime(tzinfo=datetime.UTC),
        adapter_from_proto(event.adapter) if event.HasField("adapter") else None,
        active_from_proto(event.active) if event.HasField("active") else None,
        message.resume_token,
    )
