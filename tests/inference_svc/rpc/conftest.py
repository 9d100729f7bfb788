"""A real gRPC server on a free port with fakes behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from inference_svc.rpc.ports import Service
from inference_svc.server import InferenceServer
from loramux.inference.v1 import adapter_service_pb2_grpc, inference_service_pb2_grpc
from tests.inference_svc.rpc.fakes import FakeDescription, FakeDesk, FakeEngine, FakeShelf, FakeTokenizer


@pytest.fixture
def engine() -> FakeEngine:
    """Answers `hi` to everything, unless a test says otherwise."""
    return FakeEngine()


@pytest.fixture
def shelf() -> FakeShelf:
    """Two adapters."""
    return FakeShelf("pirate", "verse")


@pytest.fixture
def desk() -> FakeDesk:
    """Applies any ordering."""
    return FakeDesk()


async def _close() -> None:
    return None


@pytest.fixture
def service(engine: FakeEngine, shelf: FakeShelf, desk: FakeDesk) -> Service:
    """The fakes together."""
    return Service(engine, FakeTokenizer(), FakeDescription(), shelf, desk, "1.2.3", _close)


@pytest.fixture
async def server(service: Service) -> AsyncIterator[InferenceServer]:
    """Serving on a free port; looks at the engine's health every hundredth of a second."""
    server = InferenceServer("127.0.0.1:0", watch_seconds=0.01)
    await server.start(service)
    yield server
    await server.stop_now()


@pytest.fixture
async def channel(server: InferenceServer) -> AsyncIterator[grpc.aio.Channel]:
    """A client's connection."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def inference(channel: grpc.aio.Channel) -> inference_service_pb2_grpc.InferenceServiceAsyncStub:
    """A client of InferenceService."""
    return inference_service_pb2_grpc.InferenceServiceStub(channel)


@pytest.fixture
def adapters(channel: grpc.aio.Channel) -> adapter_service_pb2_grpc.AdapterServiceAsyncStub:
    """A client of AdapterService."""
    return adapter_service_pb2_grpc.AdapterServiceStub(channel)
