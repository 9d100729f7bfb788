"""Adapters, choices of adapters and pages of them between protobuf messages and the domain."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from inference_svc.adapters.residency import ResidencyEventKind, ResidencySnapshot, ResidencyUpdate
from inference_svc.adapters.selection import (
    ActiveSelection,
    AdapterKind,
    AppliedAdapter,
    BaseSelection,
    LoraSelection,
    Selection,
    XLoraSelection,
)
from inference_svc.errors import InvalidRequest
from loramux.inference.v1 import adapter_pb2, adapter_service_pb2

if TYPE_CHECKING:  # types only: what stands behind them brings torch along
    from inference_svc.adapters.resident import ActiveSet, ResidentAdapter
    from inference_svc.rpc.ports import FollowedOrdering

ADAPTER_PREFIX = "adapters/"
ORDERING_PREFIX = "orderings/"
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
TOKEN_PREFIX = "ListAdapters:"

KINDS = {
    AdapterKind.LORA: adapter_pb2.ADAPTER_KIND_LORA,
    AdapterKind.XLORA: adapter_pb2.ADAPTER_KIND_XLORA,
}


EVENT_KINDS = {
    kind: adapter_service_pb2.AdapterEventKind.Value(f"ADAPTER_EVENT_KIND_{kind.name}") for kind in ResidencyEventKind
}


def adapter_name(name: str, field: str) -> str:
    """`pirate` for `pirate` or `adapters/pirate`.

    Raises:
        InvalidRequest: neither form.
    """
    plain = name.removeprefix(ADAPTER_PREFIX)
    if not plain or "/" in plain:
        raise InvalidRequest(field, f"{name!r} is not an adapter name: write `pirate` or `adapters/pirate`", name=name)
    return plain


def selection_from_proto(message: adapter_pb2.AdapterSelection, field: str) -> Selection:
    """The choice that a request makes; `field` is its path in the request.

    Raises:
        InvalidRequest: a malformed name, or one that is given twice.
    """
    match message.WhichOneof("selection"):
        case "base":
            return BaseSelection()
        case "loras":
            return _lora_selection(message.loras, f"{field}.loras.adapters")
        case "xlora":
            return XLoraSelection(adapter_name(message.xlora.name, f"{field}.xlora.name"))
        case _:
            return ActiveSelection()


def new_default_from_proto(message: adapter_pb2.AdapterSelection) -> Selection:
    """The choice that is to become the default.

    Raises:
        InvalidRequest: none is made, it is `active` itself, or a name is malformed or given twice.
    """
    selection = selection_from_proto(message, "selection")
    if isinstance(selection, ActiveSelection):
        raise InvalidRequest("selection", "say what becomes the default: `base`, `loras` or `xlora`")
    return selection


def _lora_selection(message: adapter_pb2.WeightedAdapters, field: str) -> LoraSelection:
    weights: dict[str, float] = {}
    for index, adapter in enumerate(message.adapters):
        path = f"{field}[{index}].name"
        name = adapter_name(adapter.name, path)
        if name in weights:
            raise InvalidRequest(path, f"adapter {name!r} is named twice: name it once, with the sum of the weights")
        weights[name] = adapter.weight if adapter.HasField("weight") else 1.0
    return LoraSelection(weights)


def selection_to_proto(selection: Selection) -> adapter_pb2.AdapterSelection:
    """A choice, as a client would send it."""
    match selection:
        case BaseSelection():
            return adapter_pb2.AdapterSelection(base=adapter_pb2.BaseModel())
        case ActiveSelection():
            return adapter_pb2.AdapterSelection(active=adapter_pb2.ActiveDefault())
        case LoraSelection(weights):
            adapters = [
                adapter_pb2.WeightedAdapter(name=ADAPTER_PREFIX + name, weight=weight)
                for name, weight in weights.items()
            ]
            return adapter_pb2.AdapterSelection(loras=adapter_pb2.WeightedAdapters(adapters=adapters))
        case XLoraSelection(name):
            return adapter_pb2.AdapterSelection(xlora=adapter_pb2.XLoraSelection(name=ADAPTER_PREFIX + name))


def active_to_proto(active: ActiveSet) -> adapter_pb2.ActiveAdapters:
    """The active default."""
    return adapter_pb2.ActiveAdapters(selection=selection_to_proto(active.selection), generation=active.generation)


def adapter_to_proto(adapter: ResidentAdapter) -> adapter_pb2.Adapter:
    """A resident adapter."""
    return adapter_pb2.Adapter(
        name=ADAPTER_PREFIX + adapter.name,
        kind=KINDS[adapter.kind],
        digest=adapter.digest,
        source=adapter.source,
        rank=adapter.rank,
        target_modules=adapter.target_modules,
        num_layers=adapter.num_layers,
        experts=adapter.experts,
        size_bytes=adapter.size_bytes,
        active_requests=adapter.active_requests,
        load_time=_timestamp(adapter.load_time),
        ordering=adapter.ordering,
        pinned=adapter.pinned,
        last_use_time=_timestamp(adapter.last_use_time),
    )


def update_to_proto(update: ResidencyUpdate) -> adapter_service_pb2.WatchAdaptersResponse:
    """What a watcher is told."""
    response = adapter_service_pb2.WatchAdaptersResponse(resume_token=update.resume_token)
    content = update.content
    if isinstance(content, ResidencySnapshot):
        response.snapshot.generation = content.generation
        response.snapshot.active.CopyFrom(active_to_proto(content.active))
        response.snapshot.adapters.extend(adapter_to_proto(adapter) for adapter in content.adapters)
        return response
    event = response.event
    event.kind = EVENT_KINDS[content.kind]
    event.generation = content.generation
    event.event_time.CopyFrom(_timestamp(content.time))
    if content.adapter is not None:
        event.adapter.CopyFrom(adapter_to_proto(content.adapter))
    if content.active is not None:
        event.active.CopyFrom(active_to_proto(content.active))
    return response


def followed_to_proto(state: FollowedOrdering) -> adapter_service_pb2.FollowedOrdering:
    """How following an ordering goes."""
    return adapter_service_pb2.FollowedOrdering(
        reference=state.reference,
        applied=state.applied,
        last_seen=state.last_seen,
        problem=state.problem,
        last_heard_time=None if state.last_heard_time is None else _timestamp(state.last_heard_time),
    )


def _timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def applied_to_proto(adapter: AppliedAdapter) -> adapter_pb2.AppliedAdapter:
    """An adapter that a request runs with."""
    return adapter_pb2.AppliedAdapter(
        name=ADAPTER_PREFIX + adapter.name,
        kind=KINDS[adapter.kind],
        digest=adapter.digest,
        weight=adapter.weight,
        experts=adapter.experts,
        ordering=adapter.ordering,
    )


def page_of(adapters: Sequence[ResidentAdapter], page_size: int, page_token: str) -> tuple[list[ResidentAdapter], str]:
    """The adapters by name after the token, and the token of the next page: empty at the end.

    A token names the last adapter that was seen, so adapters that come and go between pages shift nothing.

    Raises:
        InvalidRequest: the token is not one of ours.
    """
    size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    after = _after(page_token) if page_token else ""
    rest = sorted((adapter for adapter in adapters if adapter.name > after), key=lambda adapter: adapter.name)
    page = rest[:size]
    return page, _token(page[-1].name) if len(rest) > size else ""


def _token(name: str) -> str:
    return base64.urlsafe_b64encode((TOKEN_PREFIX + name).encode()).decode()


def _after(token: str) -> str:
    try:
        text = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        text = ""
    if not text.startswith(TOKEN_PREFIX):
        raise InvalidRequest("page_token", f"page token {token!r} is not one that ListAdapters gave out", token=token)
    return text.removeprefix(TOKEN_PREFIX)
