"""A real server in this process and a real channel to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from loramux.ordering.v1 import ordering_service_pb2_grpc
from ordering_svc.config import Config
from ordering_svc.persistence.store import OrderingStore
from ordering_svc.server import running

DETAILS: dict[str, type[Message]] = {
    name: getattr(error_details_pb2, name)
    for name in ("ErrorInfo", "BadRequest", "ResourceInfo", "RetryInfo", "PreconditionFailure", "RequestInfo")
}


@dataclass(frozen=True, slots=True)
class Service:
    """A running service and how to call it."""

    channel: grpc.aio.Channel
    stub: Any  # the asynchronous stub: its calls are awaited
    address: str
    metrics_address: str | None


Serve = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def model_root(tmp_path: Path) -> Path:
    """An allowed folder with one small model."""
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    return folder.parent


@pytest.fixture
def serve(tmp_path: Path, model_root: Path) -> Serve:
    """Starts a service on this test's database; a second call finds what the first one kept."""

    @asynccontextmanager
    async def start(store: OrderingStore | None = None, **settings: Any) -> AsyncIterator[Service]:
        defaults: dict[str, Any] = {
            "data_dir": tmp_path / "data",
            "listen": "127.0.0.1:0",
            "model_roots": (model_root,),
        }
        async with (
            running(Config(**(defaults | settings)), store) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            stub = ordering_service_pb2_grpc.OrderingServiceStub(channel)
            yield Service(channel, stub, server.address, server.metrics_address)

    return start


@pytest.fixture
async def service(serve: Serve) -> AsyncIterator[Service]:
    """A running service with an empty database."""
    async with serve() as started:
        yield started


@dataclass(frozen=True, slots=True)
class Failure:
    """What a refused call told."""

    code: grpc.StatusCode
    message: str
    details: dict[str, Any]  # by the name of their type

    @property
    def reason(self) -> str:
        """The stable reason."""
        return str(self.details["ErrorInfo"].reason)


async def failure_of(call: Any) -> Failure:
    """The failure of a call that must fail, with its details unpacked."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    status: Any = rpc_status.from_call(raised.value)  # type: ignore[arg-type]  # works for this kind too
    assert status is not None, raised.value
    details: dict[str, Any] = {}
    for packed in status.details:
        name = packed.type_url.rpartition(".")[2]
        details[name] = DETAILS[name]()
        assert packed.Unpack(details[name])
    assert details["ErrorInfo"].domain == "loramux.ordering"
    return Failure(raised.value.code(), status.message, details)
