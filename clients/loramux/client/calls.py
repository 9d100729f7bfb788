"""Calls that are not made yet: what both clients send, and how they read the answer."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

INFERENCE = "/loramux.inference.v1.InferenceService/"
ADAPTERS = "/loramux.inference.v1.AdapterService/"
ORDERINGS = "/loramux.ordering.v1.OrderingService/"

GENERATE = INFERENCE + "Generate"
WATCH = ORDERINGS + "WatchOrderings"
WATCH_ADAPTERS = ADAPTERS + "WatchAdapters"

RETRIED = (
    INFERENCE + "Tokenize",
    INFERENCE + "Detokenize",
    INFERENCE + "GetModel",
    ADAPTERS + "GetAdapter",
    ADAPTERS + "ListAdapters",
    ADAPTERS + "PinAdapter",
    ADAPTERS + "UnpinAdapter",
    WATCH_ADAPTERS,
    ORDERINGS + "GetOrdering",
    ORDERINGS + "ListOrderings",
    ORDERINGS + "ListOrderingRevisions",
    ORDERINGS + "ExportOrdering",
    ORDERINGS + "GenerateOrdering",
    ORDERINGS + "DeriveOrdering",
    ORDERINGS + "ValidateOrdering",
    ORDERINGS + "DiffOrderings",
    ORDERINGS + "WatchOrderings",
    ORDERINGS + "CreateOrdering",
    ORDERINGS + "UpdateOrdering",
    ORDERINGS + "DeleteOrdering",
    ORDERINGS + "UndeleteOrdering",
    ORDERINGS + "PurgeOrdering",
    ORDERINGS + "RollbackOrdering",
    ORDERINGS + "TagRevision",
    ORDERINGS + "UntagRevision",
    ORDERINGS + "ImportOrdering",
)
"""Methods that are safe to send again: they change nothing, or carry a request_id that makes them happen once."""

Response = TypeVar("Response", bound=Message)
Value = TypeVar("Value")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Call(Generic[Response, Value]):
    """One unary call: method path, request, and the way from the response to a value of the client."""

    method: str
    request: Message
    response: type[Response]
    decode: Callable[[Response], Value]
    slow: bool = False
    """True if it may load files or ask the hub, so that it gets the long deadline."""


AnyCall = Call[Any, Value]


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page of a list; `next_token` is empty on the last one."""

    items: tuple[Item, ...]
    next_token: str


Steps = Generator[Call[Any, Any], Any, Value]
"""Calls that follow from each other: each is sent its answer, or thrown its LoramuxError; the value comes last."""

PageCall = Callable[[str], Call[Any, Page[Item]]]
"""Makes the call for the page that a token names; the empty token names the first page."""
