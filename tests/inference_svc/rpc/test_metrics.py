"""Metrics of the inference service over HTTP: calls by status."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from inference_svc.config import ConfigError
from inference_svc.rpc.ports import Service
from inference_svc.server import InferenceServer
from loramux.inference.v1 import generation_pb2, inference_service_pb2_grpc
from tests.prometheus import read_metrics

GENERATE = ("Generate", "loramux.inference.v1.InferenceService", "server_stream")


async def test_calls_are_counted_by_status_and_served_over_http(
    service: Service,
) -> None:
    server = InferenceServer("127.0.0.1:0", metrics_port=0)
    await server.start(service)
    assert server.metrics_address is not None
    port = int(server.metrics_address.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"--metrics-port {port}: 127.0.0.1:{port} cannot be bound"):
        InferenceServer("127.0.0.1:0", metrics_port=port)
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: inference_service_pb2_grpc.InferenceServiceAsyncStub = inference_service_pb2_grpc.InferenceServiceStub(
            channel
        )
        asked = generation_pb2.GenerateRequest(prompt=generation_pb2.Prompt(text="hello"))
        assert [event async for event in stub.Generate(asked)]
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Generate(generation_pb2.GenerateRequest()).read()
        call = stub.Generate(asked)
        await call.read()
        call.cancel()
        while True:
            samples = await asyncio.to_thread(read_metrics, server.metrics_address)
            if samples["grpc_server_handling_seconds_count", GENERATE] == 3:
                break
            await asyncio.sleep(0.01)
    await server.stop_now()
    assert samples["grpc_server_started_total", GENERATE] == 3
    assert samples["grpc_server_handled_total", ("OK", *GENERATE)] >= 1
    assert samples["grpc_server_handled_total", ("INVALID_ARGUMENT", *GENERATE)] == 1
    assert samples["process_resident_memory_bytes", ()] > 0
    assert InferenceServer("127.0.0.1:0").metrics_address is None
