"""Adapters as the client sees them: how a request chooses them, what is resident, what is active."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loramux.client.errors import broken_answer, invalid_argument
from loramux.inference.v1 import adapter_pb2, adapter_service_pb2


class AdapterKind(enum.StrEnum):
    """What kind of adapter a name stands for."""

    LORA = "lora"
    XLORA = "xlora"


@dataclass(frozen=True, slots=True)
class Base:
    """Chooses the plain base model; use the constant `BASE`."""


@dataclass(frozen=True, slots=True)
class LoRA:
    """Chooses one LoRA adapter; several form a weighted sum."""

    name: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class XLoRA:
    """Chooses an X-LoRA mixture."""

    name: str


BASE = Base()

AdapterChoice = str | LoRA | XLoRA | Base | Mapping[str, float] | Sequence[LoRA | str] | None
"""`None`: the active default; `str`: one LoRA by name; a mapping of names to weights, or a sequence of LoRAs: a
weighted sum; `XLoRA(name)`: a mixture; `BASE`: no adapter."""

Selection = Base | XLoRA | tuple[LoRA, ...]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that is resident in the inference service; fields as in `loramux.inference.v1.Adapter`."""

    name: str
    kind: AdapterKind
    digest: str
    source: str
    rank: int
    target_modules: tuple[str, ...]
    num_layers: int
    experts: tuple[str, ...]
    size_bytes: int
    active_requests: int
    load_time: datetime.datetime
    ordering: str | None
    pinned: bool
    last_use_time: datetime.datetime


@dataclass(frozen=True, slots=True)
class FollowedOrdering:
    """An ordering that the service applies again whenever it changes; names as `id`, `id@tag`, `id@revision`."""

    reference: str
    applied: str | None
    last_seen: str | None
    problem: str | None
    last_heard_time: datetime.datetime | None


@dataclass(frozen=True, slots=True)
class ActiveAdapters:
    """What requests without a choice of their own run with; `generation` grows by one with every change."""

    selection: Selection
    generation: int


@dataclass(frozen=True, slots=True)
class AppliedAdapter:
    """An adapter that a request was really run with."""

    name: str
    kind: AdapterKind
    digest: str
    weight: float | None
    experts: tuple[str, ...]
    ordering: str | None


@dataclass(frozen=True, slots=True)
class AppliedOrdering:
    """What ApplyOrdering did: the exact revision (`id@revision`), the adapters it brought, the active default now.

    `warnings` say what may not work as it was trained to, a sentence each.
    """

    ordering: str
    adapters: tuple[Adapter, ...]
    active: ActiveAdapters
    warnings: tuple[str, ...] = ()


def adapter_resource(name: str) -> str:
    """`adapters/{name}`, from either form."""
    return f"adapters/{short_name(name)}"


def short_name(resource: str) -> str:
    """The part of a resource name after its collection."""
    return resource.partition("/")[2] if resource.startswith(("adapters/", "orderings/")) else resource


def choice_to_proto(choice: AdapterChoice) -> adapter_pb2.AdapterSelection:
    """The message for a choice. Raises InvalidArgument for an empty sum or a name that is chosen twice."""
    if choice is None:
        return adapter_pb2.AdapterSelection(active=adapter_pb2.ActiveDefault())
    if isinstance(choice, Base):
        return adapter_pb2.AdapterSelection(base=adapter_pb2.BaseModel())
    if isinstance(choice, XLoRA):
        return adapter_pb2.AdapterSelection(xlora=adapter_pb2.XLoraSelection(name=choice.name))
    return adapter_pb2.AdapterSelection(loras=adapter_pb2.WeightedAdapters(adapters=map(_weighted, _loras(choice))))


def _loras(choice: str | LoRA | Mapping[str, float] | Sequence[LoRA | str]) -> tuple[LoRA, ...]:
    if isinstance(choice, str):
        return (LoRA(choice),)
    if isinstance(choice, LoRA):
        return (choice,)
    if isinstance(choice, Mapping):
        loras = tuple(LoRA(name, weight) for name, weight in choice.items())
    else:
        loras = tuple(LoRA(part) if isinstance(part, str) else part for part in choice)
    if not loras:
        raise invalid_argument("adapters", "is empty; BASE chooses the plain base model, None the active default")
    names = [short_name(lora.name) for lora in loras]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise invalid_argument("adapters", f"names {twice!r} more than once; give it one weight")
    return loras


def _weighted(lora: LoRA) -> adapter_pb2.WeightedAdapter:
    return adapter_pb2.WeightedAdapter(name=lora.name, weight=lora.weight)


def kind_from_proto(kind: adapter_pb2.AdapterKind.ValueType) -> AdapterKind:
    """Raises Internal if the service sent a kind that this client does not know."""
    if kind == adapter_pb2.ADAPTER_KIND_LORA:
        return AdapterKind.LORA
    if kind == adapter_pb2.ADAPTER_KIND_XLORA:
        return AdapterKind.XLORA
    raise broken_answer(f"the service sent the unknown adapter kind {kind}: is it newer than this client?")


def adapter_from_proto(message: adapter_pb2.Adapter) -> Adapter:
    """The value for a resident adapter."""
    return Adapter(
        name=short_name(message.name),
        kind=kind_from_proto(message.kind),
        digest=message.digest,
        source=message.source,
        rank=message.rank,
        target_modules=tuple(message.target_modules),
        num_layers=message.num_layers,
        experts=tuple(message.experts),
        size_bytes=message.size_bytes,
        active_requests=message.active_requests,
        load_time=message.load_time.ToDatetime(tzinfo=datetime.UTC),
        ordering=short_name(message.ordering) or None,
        pinned=message.pinned,
        last_use_time=message.last_use_time.ToDatetime(tzinfo=datetime.UTC),
    )


def followed_from_proto(message: adapter_service_pb2.FollowedOrdering) -> FollowedOrdering:
    """The value for a followed ordering."""
    heard = message.last_heard_time.ToDatetime(tzinfo=datetime.UTC) if message.HasField("last_heard_time") else None
    return FollowedOrdering(
        reference=short_name(message.reference),
        applied=short_name(message.applied) or None,
        last_seen=short_name(message.last_seen) or None,
        problem=message.problem or None,
        last_heard_time=heard,
    )


def applied_from_proto(message: adapter_pb2.AppliedAdapter) -> AppliedAdapter:
    """The value for an adapter that a request ran with."""
    return AppliedAdapter(
        name=short_name(message.name),
        kind=kind_from_proto(message.kind),
        digest=message.digest,
        weight=message.weight if message.HasField("weight") else None,
        experts=tuple(message.experts),
        ordering=short_name(message.ordering) or None,
    )


def active_from_proto(message: adapter_pb2.ActiveAdapters) -> ActiveAdapters:
    """The value for the active default; nothing set means the base model."""
    selection = message.selection
    chosen = selection.WhichOneof("selection")
    if chosen == "xlora":
        return ActiveAdapters(XLoRA(short_name(selection.xlora.name)), message.generation)
    if chosen == "loras":
        loras = tuple(
            LoRA(short_name(part.name), part.weight if part.HasField("weight") else 1.0)
            for part in selection.loras.adapters
        )
        return ActiveAdapters(loras, message.generation)
    return ActiveAdapters(BASE, message.generation)
