"""The client knows every method of both services, retries only reads, and imports nothing heavy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import loramux.client
from loramux.client.calls import READS
from loramux.client.channels import channel_options
from loramux.inference.v1 import adapter_service_pb2, inference_service_pb2
from loramux.ordering.v1 import ordering_service_pb2

FILES = (inference_service_pb2, adapter_service_pb2, ordering_service_pb2)
METHODS = {
    f"/{service.full_name}/{method.name}"
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def test_every_method_of_both_services_is_called_by_the_client() -> None:
    folder = Path(loramux.client.__file__).parent
    sources = "\n".join(path.read_text() for path in folder.glob("*calls.py"))
    services = {
        "INFERENCE": "/loramux.inference.v1.InferenceService/",
        "ADAPTERS": "/loramux.inference.v1.AdapterService/",
        "ORDERINGS": "/loramux.ordering.v1.OrderingService/",
    }
    called = re.findall(r'(INFERENCE|ADAPTERS|ORDERINGS) \+ "(\w+)"', sources)
    assert {services[name] + method for name, method in called} == METHODS


def test_only_methods_that_change_nothing_are_retried() -> None:
    assert set(READS) <= METHODS
    assert {method.rpartition("/")[2] for method in METHODS - set(READS)} == {
        "Generate",
        "LoadAdapter",
        "UnloadAdapter",
        "ActivateAdapters",
        "ApplyOrdering",
        "CreateOrdering",
        "UpdateOrdering",
        "DeleteOrdering",
        "ImportOrdering",
    }
    config = json.loads(str(dict(channel_options())["grpc.service_config"]))
    named = {f"/{entry['service']}/{entry['method']}" for entry in config["methodConfig"][0]["name"]}
    assert named == set(READS)


@pytest.mark.parametrize("module", ["loramux.client", "loramux.cli.__main__"])
def test_importing_the_client_or_the_command_line_imports_nothing_heavy(module: str) -> None:
    script = f"import sys, json, {module}; sys.stdout.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    heavy = {"torch", "sqlalchemy", "alembic", "gguf", "transformers", "peft", "matplotlib", "safetensors"}
    assert loaded & (heavy | {"ordering_svc", "inference_svc", "protovalidate"}) == set()
    assert "numpy" in loaded
