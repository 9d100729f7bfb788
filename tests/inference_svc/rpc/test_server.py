"""The server's life: readiness, health, drain, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from inference_svc.config import Config, ConfigError, StartError, load_config
from inference_svc.rpc.ports import Service
from inference_svc.server import SERVICE_NAMES, InferenceServer, running, serve
from loramux.inference.v1 import generation_pb2, inference_service_pb2, inference_service_pb2_grpc
from tests.inference_svc.rpc.fakes import FakeEngine, FakeStream
from tests.ports import kept_port

if TYPE_CHECKING:  # the name exists for type checkers only
    from loramux.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

pb = generation_pb2
REQUEST = pb.GenerateRequest(prompt=pb.Prompt(text="hello"))
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def until(condition: Callable[[], bool]) -> None:
    """Wait for another task or thread to get somewhere; the test's own time limit ends a wait in vain."""
    while not condition():
        await asyncio.sleep(0.005)


async def health_of(channel: grpc.aio.Channel, name: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    status: int = (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status
    return status


@pytest.mark.parametrize("name", ["", *SERVICE_NAMES])
async def test_health_turns_when_the_engine_dies(name: str, engine: FakeEngine, channel: grpc.aio.Channel) -> None:
    assert await health_of(channel, name) == SERVING
    engine.is_healthy = False
    while await health_of(channel, name) == SERVING:
        await asyncio.sleep(0.005)
    assert await health_of(channel, name) == NOT_SERVING


async def test_a_watcher_hears_of_a_dead_engine(engine: FakeEngine, channel: grpc.aio.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    call = stub.Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await call.read()).status == SERVING
    engine.is_healthy = False
    assert (await call.read()).status == NOT_SERVING
    call.cancel()


async def test_reflection_lists_our_services(channel: grpc.aio.Channel) -> None:
    make_stub: Any = reflection_pb2_grpc.ServerReflectionStub  # typed for the blocking API only
    call = make_stub(channel).ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert set(SERVICE_NAMES) | {"grpc.health.v1.Health"} <= names
    call.cancel()


async def test_a_drain_lets_running_answers_end_and_refuses_new_ones(
    engine: FakeEngine, server: InferenceServer, inference: InferenceServiceAsyncStub, channel: grpc.aio.Channel
) -> None:
    engine.on_submit = FakeStream.start
    call = inference.Generate(REQUEST)
    await call.read()
    draining = asyncio.create_task(server.drain(60))
    await until(lambda: engine.is_draining)
    assert await health_of(channel, "") == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await inference.Generate(REQUEST).read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not draining.done()
    engine.streams[0].say("bye")
    engine.streams[0].finish(3)
    rest = []
    while isinstance(event := await call.read(), pb.GenerateResponse):  # in the end grpc.aio.EOF
        rest.append(event.WhichOneof("event"))
    assert rest == ["output", "finished"]
    assert await draining
    assert engine.num_stops == 1


async def test_a_drain_that_takes_too_long_tells_the_rest_unavailable(
    engine: FakeEngine, server: InferenceServer, inference: InferenceServiceAsyncStub
) -> None:
    engine.on_submit = FakeStream.start
    call = inference.Generate(REQUEST)
    await call.read()
    assert not await server.drain(0.05)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "the service is shutting down: send the request to another one"


async def test_a_taken_address_is_one_sentence(server: InferenceServer) -> None:
    with pytest.raises(ConfigError, match=f"--listen {server.address}"):
        InferenceServer(server.address)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config({"listen": "127.0.0.1:0", "port_file": tmp_path / "port", "drain_seconds": 60.0}, {})


async def test_running_serves_and_tells_its_address_only_when_ready(service: Service, config: Config) -> None:
    assert config.port_file is not None
    port_file = config.port_file

    async def open_service(_: Config) -> Service:
        assert not port_file.exists()
        return service

    async with running(config, open_service) as address:
        assert port_file.read_text() == f"{address}\n"
        async with grpc.aio.insecure_channel(address) as channel:
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            assert (await stub.GetModel(inference_service_pb2.GetModelRequest())).base_model_id == "org/fake"
    assert [path.name for path in port_file.parent.iterdir()] == ["port"]


async def test_a_start_that_fails_gives_the_address_back(config: Config, service: Service) -> None:
    async def fail(_: Config) -> Service:
        raise StartError("no model")

    async def succeed(_: Config) -> Service:
        return service

    address = f"127.0.0.1:{kept_port()}"
    fixed = config.model_copy(update={"listen": address})
    with pytest.raises(StartError, match="no model"):
        async with running(fixed, fail):
            pass
    async with running(fixed, succeed) as bound:
        assert bound == address


async def test_a_port_file_that_cannot_be_written_stops_the_engine(
    config: Config, service: Service, engine: FakeEngine, tmp_path: Path
) -> None:
    async def succeed(_: Config) -> Service:
        return service

    with pytest.raises(StartError, match="--port-file"):
        await serve(config.model_copy(update={"port_file": tmp_path / "no" / "port"}), succeed)
    assert engine.num_stops > 0


@asynccontextmanager
async def serving(config: Config, service: Service) -> AsyncIterator[tuple[asyncio.Task[int], str]]:
    """`serve` in a task, ready; its signals are ours again at the end."""

    async def open_service(_: Config) -> Service:
        return service

    assert config.port_file is not None
    task = asyncio.create_task(serve(config, open_service))
    try:
        await until(config.port_file.exists)
        yield task, config.port_file.read_text().strip()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)


def test_what_is_there_before_it_serves_is_in_no_later_garbage_collection() -> None:
    # In a process of its own: in this one, things of other tests would be kept.
    program = """
import asyncio, gc
from inference_svc.server import sparing_what_is_here

async def open_service(config):
    return config

assert asyncio.run(sparing_what_is_here(open_service)("opened")) == "opened"
print(gc.get_freeze_count(), len(gc.get_objects()))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    spared, left = map(int, said.stdout.split())
    assert spared > 10_000
    assert left < 1_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_the_exit_status_is_0(
    number: signal.Signals, config: Config, service: Service, engine: FakeEngine
) -> None:
    engine.on_submit = FakeStream.start
    async with serving(config, service) as (task, address), grpc.aio.insecure_channel(address) as channel:
        call = inference_service_pb2_grpc.InferenceServiceStub(channel).Generate(REQUEST)
        await call.read()
        os.kill(os.getpid(), number)
        await until(lambda: engine.is_draining)
        engine.streams[0].finish()
        event = await call.read()
        assert isinstance(event, pb.GenerateResponse)
        assert event.HasField("finished")
        assert await task == 0


async def test_a_second_signal_ends_it_at_once(config: Config, service: Service, engine: FakeEngine) -> None:
    engine.on_submit = FakeStream.start
    async with serving(config, service) as (task, address), grpc.aio.insecure_channel(address) as channel:
        call = inference_service_pb2_grpc.InferenceServiceStub(channel).Generate(REQUEST)
        await call.read()
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: engine.is_draining)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await task == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
