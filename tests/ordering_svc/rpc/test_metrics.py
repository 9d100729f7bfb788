"""Metrics of the ordering service over HTTP: calls by status, and how long the database takes."""

from __future__ import annotations

import asyncio
import urllib.error

import grpc
import pytest

from loramux.ordering.v1 import ordering_pb2 as P
from loramux.ordering.v1 import ordering_service_pb2 as S
from ordering_svc.errors import CannotStart
from tests.ordering_svc.rpc.conftest import Serve, failure_of
from tests.prometheus import read_metrics


async def test_calls_are_counted_by_status_and_the_database_is_timed(serve: Serve) -> None:
    async with serve(metrics_port=0) as service:
        assert service.metrics_address is not None
        assert service.metrics_address.startswith("127.0.0.1:")
        file = b'{"base_model_id": "m"}'
        await service.stub.ImportOrdering(S.ImportOrderingRequest(ordering_id="a", json=file))
        await failure_of(service.stub.GetOrdering(S.GetOrderingRequest(name="orderings/b")))
        await failure_of(service.stub.GetOrdering(S.GetOrderingRequest(name="nonsense")))
        watch = service.stub.WatchOrderings(S.WatchOrderingsRequest())
        await watch.read()
        watch.cancel()
        while True:
            samples = await asyncio.to_thread(read_metrics, service.metrics_address)
            if ("grpc_server_handled_total", ("CANCELLED", *key("WatchOrderings", "server_stream"))) in samples:
                break
            await asyncio.sleep(0.01)
    assert samples["grpc_server_started_total", key("GetOrdering")] == 2
    assert samples["grpc_server_handled_total", ("OK", *key("ImportOrdering"))] == 1
    assert samples["grpc_server_handled_total", ("NOT_FOUND", *key("GetOrdering"))] == 1
    assert samples["grpc_server_handled_total", ("INVALID_ARGUMENT", *key("GetOrdering"))] == 1
    assert samples["grpc_server_handling_seconds_count", key("GetOrdering")] == 2
    assert samples["loramux_ordering_store_seconds_count", ("create", "ok")] == 1
    assert samples["loramux_ordering_store_seconds_count", ("get", "error")] == 1
    assert 0 < samples["loramux_ordering_store_seconds_sum", ("create", "ok")] < 60
    assert samples["process_resident_memory_bytes", ()] > 0


def key(method: str, kind: str = "unary") -> tuple[str, str, str]:
    return method, "loramux.ordering.v1.OrderingService", kind


async def test_metrics_are_off_unless_asked_for_and_a_taken_port_is_named(serve: Serve) -> None:
    async with serve(metrics_port=0) as first:
        assert first.metrics_address is not None
        port = int(first.metrics_address.rpartition(":")[2])
        with pytest.raises(CannotStart, match=f"--metrics-port {port}: 127.0.0.1:{port} cannot be bound"):
            async with serve(metrics_port=port):
                pass
    async with serve() as second:
        assert second.metrics_address is None
    with pytest.raises(urllib.error.URLError):
        read_metrics(first.metrics_address)


async def test_names_of_orderings_are_in_no_label(serve: Serve) -> None:
    async with serve(metrics_port=0) as service:
        document = P.OrderingDocument(base_model_id="m")
        for number in range(20):
            request = S.CreateOrderingRequest(ordering_id=f"secret{number}", ordering=P.Ordering(document=document))
            await service.stub.CreateOrdering(request)
        assert service.metrics_address is not None
        samples = await asyncio.to_thread(read_metrics, service.metrics_address)
    assert not any("secret" in value for _, values in samples for value in values)
    assert grpc.StatusCode.OK.name in {values[0] for name, values in samples if name == "grpc_server_handled_total"}
