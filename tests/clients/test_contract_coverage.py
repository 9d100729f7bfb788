"""Both clients call every method of both services, send again only what is safe, and import nothing heavy."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory

from loramux.client import AsyncClient, Client, HubModel, OrderingDocument, errors
from loramux.client.calls import RETRIED
from loramux.client.channels import channel_options
from loramux.inference.v1 import adapter_service_pb2, inference_service_pb2
from loramux.ordering.v1 import ordering_service_pb2

FILES = (inference_service_pb2, adapter_service_pb2, ordering_service_pb2)
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}

DOCUMENT = OrderingDocument(base_model_id="m")
CALLS: tuple[Callable[[Any], Any], ...] = (
    lambda client: client.generate("x"),
    lambda client: client.tokenize("x"),
    lambda client: client.detokenize([1]),
    lambda client: client.model(),
    lambda client: client.apply_ordering("x"),
    lambda client: client.adapters.load("x", "/x"),
    lambda client: client.adapters.unload("x"),
    lambda client: client.adapters.get("x"),
    lambda client: client.adapters.pin("x"),
    lambda client: client.adapters.unpin("x"),
    lambda client: client.adapters.watch().receive(),
    lambda client: client.adapters.list(),
    lambda client: client.adapters.activate("x"),
    lambda client: client.orderings.create("x", DOCUMENT),
    lambda client: client.orderings.get("x"),
    lambda client: client.orderings.list(),
    lambda client: client.orderings.revisions("x"),
    lambda client: client.orderings.update("x", description="y"),
    lambda client: client.orderings.delete("x"),
    lambda client: client.orderings.undelete("x"),
    lambda client: client.orderings.purge("x"),
    lambda client: client.orderings.rollback("x", 1),
    lambda client: client.orderings.tag("x", "prod"),
    lambda client: client.orderings.untag("x", "prod"),
    lambda client: client.orderings.diff("x@1", "x@2"),
    lambda client: client.orderings.watch().started(),
    lambda client: client.orderings.import_file(b"{}", "x"),
    lambda client: client.orderings.export_file("x"),
    lambda client: client.orderings.generate(HubModel("x/y"), ["q_proj"]),
    lambda client: client.orderings.derive("x", adapters=["a"]),
    lambda client: client.orderings.validate("x"),
)


class Recorder(grpc.GenericRpcHandler):
    """A server that knows no method, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        method = handler_call_details.method

        def refuse(request: bytes, context: grpc.ServicerContext) -> Any:
            self.asked.append((method, request))
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")

        return grpc.unary_unary_rpc_method_handler(refuse)


@pytest.fixture
def recorder() -> Iterator[tuple[Recorder, str]]:
    """The recorder and its address."""
    server, recorder = grpc.server(futures.ThreadPoolExecutor(max_workers=2)), Recorder()
    server.add_generic_rpc_handlers((recorder,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield recorder, f"127.0.0.1:{port}"
    server.stop(grace=None).wait()


def _call_all_blocking(address: str) -> None:
    with Client(address, ordering=address) as client:
        for call in CALLS:
            with pytest.raises(errors.LoramuxError):
                call(client)


def _call_all_asynchronously(address: str) -> None:
    async def run() -> None:
        async with AsyncClient(address, ordering=address) as client:
            for call in CALLS:
                with pytest.raises(errors.LoramuxError):
                    await call(client)

    asyncio.run(run())


@pytest.mark.parametrize("call_all", [_call_all_blocking, _call_all_asynchronously])
def test_every_method_of_both_services_is_called_by_the_client(
    recorder: tuple[Recorder, str], call_all: Callable[[str], None]
) -> None:
    call_all(recorder[1])
    assert {method for method, _ in recorder[0].asked} == set(METHODS)
    ids = []
    for method, request in recorder[0].asked:
        # What writes carries an id, so that it happens once; Generate and Derive write only if they are told where.
        fields = METHODS[method].input_type.fields_by_name
        if "validate_only" in fields and "destination" not in fields:
            message: Any = message_factory.GetMessageClass(METHODS[method].input_type).FromString(request)
            ids.append(message.request_id)
    assert all(uuid.UUID(request_id).version == 4 for request_id in ids)
    assert len(set(ids)) == len(ids) == 9


def test_only_methods_that_are_safe_to_send_again_are() -> None:
    assert set(RETRIED) <= set(METHODS)
    assert {method.rpartition("/")[2] for method in set(METHODS) - set(RETRIED)} == {
        "Generate",
        "LoadAdapter",
        "UnloadAdapter",
        "ActivateAdapters",
        "ApplyOrdering",
    }
    config = json.loads(str(dict(channel_options())["grpc.service_config"]))
    named = {f"/{entry['service']}/{entry['method']}" for entry in config["methodConfig"][0]["name"]}
    assert named == set(RETRIED)


@pytest.mark.parametrize("module", ["loramux.client", "loramux.cli.__main__"])
def test_importing_the_client_or_the_command_line_imports_nothing_heavy(module: str) -> None:
    script = f"import sys, json, {module}; sys.stdout.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    heavy = {"torch", "sqlalchemy", "alembic", "gguf", "transformers", "peft", "matplotlib", "safetensors"}
    assert loaded & (heavy | {"ordering_svc", "inference_svc", "protovalidate"}) == set()
    assert "numpy" in loaded
