"""Applies orderings by reference: fetch, keep a copy, load; and what to do while the ordering service is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from inference_svc.adapters.ordering import AppliedOrdering, FetchedOrdering
from inference_svc.adapters.selection import AdapterKind, LoraSelection, Selection, XLoraSelection
from inference_svc.config import ORDERING_REFERENCE, StartError
from inference_svc.errors import InvalidRequest, OrderingServiceUnavailable
from inference_svc.rpc.ordering_client import OrderingSource
from inference_svc.rpc.ordering_copies import OrderingCopies, OrderingCopy, UnreadableCopyError
from inference_svc.rpc.ports import AdapterShelf
from loramux.ordering.v1 import ordering_pb2

KINDS = {
    ordering_pb2.ADAPTER_KIND_LORA: AdapterKind.LORA,
    ordering_pb2.ADAPTER_KIND_XLORA: AdapterKind.XLORA,
}

_log = structlog.get_logger(__name__)


class Applier(Protocol):
    """Loads what an ordering names; blocks, so it is called in a thread."""

    def apply(self, fetched: FetchedOrdering, adapter_model_id: str | None, activate: bool) -> AppliedOrdering:
        """All or nothing.

        Raises:
            InferenceError: the ordering is refused.
        """


class Threads(Protocol):
    """Where adapters are loaded."""

    async def run(self, load: Callable[[], AppliedOrdering]) -> AppliedOrdering:
        """The result of a call that blocks."""


class OrderingDesk:
    """One ordering at a time, so that the last one asked for is the one that is active in the end."""

    def __init__(
        self,
        source: OrderingSource,
        copies: OrderingCopies,
        applier: Applier,
        adapters: AdapterShelf,
        threads: Threads,
    ) -> None:
        self._source = source
        self._copies = copies
        self._applier = applier
        self._adapters = adapters
        self._threads = threads
        self._turn = asyncio.Lock()
        self._applied: dict[str, AppliedOrdering] = {}

    async def apply(self, ordering: str, *, adapter_model_id: str | None, activate: bool) -> AppliedOrdering:
        """Fetch `{id}` or `{id}@{revision}`, load what it names and, if asked to, activate it.

        Raises:
            OrderingServiceUnavailable: it cannot be fetched; the message says what stays applied.
            InferenceError: it does not exist or is refused; what was applied before stays.
        """
        if not ORDERING_REFERENCE.fullmatch(ordering):
            raise InvalidRequest(
                "ordering",
                f"{ordering!r} is not an ordering: write orderings/ID, orderings/ID@REVISION or orderings/ID@TAG",
            )
        async with self._turn:
            try:
                message = await self._source.fetch(ordering)
            except OrderingServiceUnavailable as error:
                stays = described(self._adapters.active().selection)
                raise OrderingServiceUnavailable(
                    f"{error.message}; the active default stays as it is: {stays}", **error.metadata
                ) from None
            return await self._apply(ordering, message, adapter_model_id, activate)

    async def apply_change(self, ordering: str, message: ordering_pb2.Ordering) -> AppliedOrdering:
        """Apply a revision of a followed ordering, unless it is applied already.

        It becomes the active default if the last time that it was applied still is what made the default; a default
        that somebody has set since then stays.

        Raises:
            InferenceError: it is refused; what was applied before stays.
        """
        async with self._turn:
            last = self._applied.get(message.name)
            if last is not None and last.ordering == fetched_ordering(message).revision_name:
                return last
            activate = last is None or last.active.generation == self._adapters.active().generation
            return await self._apply(ordering, message, None, activate)

    def applied(self, name: str) -> str:
        """The revision of `orderings/{id}` that is applied, or empty."""
        last = self._applied.get(name)
        return "" if last is None else last.ordering

    async def _apply(
        self, ordering: str, message: ordering_pb2.Ordering, adapter_model_id: str | None, activate: bool
    ) -> AppliedOrdering:
        fetched = fetched_ordering(message)
        applied = await self._threads.run(lambda: self._applier.apply(fetched, adapter_model_id, activate))
        self._applied[fetched.name] = applied
        await asyncio.to_thread(self._keep, ordering, message)
        _note(applied)
        return applied

    async def apply_at_start(self, ordering: str) -> AppliedOrdering:
        """As `apply`, but while the ordering service is away the copy of the last time serves.

        Raises:
            StartError: the ordering service is away, and there is no copy that can be read.
            InferenceError: the ordering does not exist or is refused.
        """
        try:
            return await self.apply(ordering, adapter_model_id=None, activate=True)
        except OrderingServiceUnavailable as error:
            copy = await asyncio.to_thread(self._last, ordering, error)
        fetched = fetched_ordering(copy.ordering)
        _log.warning(
            f"ordering service away: using the copy of {fetched.revision_name} fetched at "
            f"{copy.fetched_at.isoformat(timespec='seconds')}"
        )
        applied = await self._threads.run(lambda: self._applier.apply(fetched, None, True))
        self._applied[fetched.name] = applied
        _note(applied)
        return applied

    def _keep(self, reference: str, message: ordering_pb2.Ordering) -> None:
        try:
            self._copies.keep(reference, message)
        except OSError as error:
            _log.warning("the copy of an ordering cannot be stored", ordering=reference, error=str(error))

    def _last(self, reference: str, why: OrderingServiceUnavailable) -> OrderingCopy:
        try:
            copy = self._copies.last(reference)
        except UnreadableCopyError as error:
            raise StartError(f"--ordering {reference}: the ordering service is away, and {error}") from None
        if copy is None:
            raise StartError(
                f"--ordering {reference}: {why.message.partition(';')[0]}, and no copy of an earlier start is stored: "
                "start the ordering service, or give its --ordering-address"
            )
        return copy


def _note(applied: AppliedOrdering) -> None:
    _log.info("ordering applied", ordering=applied.ordering, adapters=[each.name for each in applied.adapters])
    for warning in applied.warnings:
        _log.warning(warning, ordering=applied.ordering)


def fetched_ordering(message: ordering_pb2.Ordering) -> FetchedOrdering:
    """An ordering as the adapters' side takes it; what the file lacks is None."""
    document = message.document
    return FetchedOrdering(
        name=message.name,
        revision_id=message.revision_id,
        kind=KINDS.get(message.kind),
        order=tuple(document.order.names) if document.HasField("order") else None,
        layers={row.path: row.row for row in document.layers.rows} if document.HasField("layers") else None,
        base_model_id=document.base_model_id,
        preload=tuple((each.name, each.adapter_model_id) for each in document.preload_adapters.adapters),
        adapter_model_id=message.adapter_model_id,
    )


def described(selection: Selection) -> str:
    """A default in words."""
    match selection:
        case LoraSelection(weights):
            return " + ".join(f"{weight:g} × {name}" for name, weight in weights.items())
        case XLoraSelection(name):
            return f"X-LoRA {name}"
        case _:
            return "the base model"
