"""Generate and Derive over a real server: every form of targets, what is stored, and how that is remembered."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import grpc
import pytest

from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2
from tests.ordering_svc.rpc.conftest import Service, failure_of

P: Any = ordering_pb2
S: Any = ordering_service_pb2
CONFIG = json.dumps({"model_type": "llama", "num_hidden_layers": 2})
MODEL = P.ModelReference(config_json=CONFIG)
QV = P.ModuleSelection(names=P.ModuleNames(names=["q_proj", "v_proj"]))


def generation(**fields: Any) -> Any:
    return S.GenerateOrderingRequest(**({"model": MODEL, "base_model_id": "m", "targets": QV} | fields))


def paths(answer: Any) -> list[str]:
    return [row.path for row in answer.document.layers.rows]


async def test_targets_are_a_list_a_pattern_or_all_linear_layers(service: Service) -> None:
    assert len(paths(await service.stub.GenerateOrdering(generation()))) == 4
    pattern = P.ModuleSelection(pattern=r".*\.1\..*(q|v)_proj")
    made = await service.stub.GenerateOrdering(generation(targets=pattern))
    assert paths(made) == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    made = await service.stub.GenerateOrdering(
        generation(targets=P.ModuleSelection(all_linear=True), exclude_modules=P.ModuleSelection(pattern=".*mlp.*"))
    )
    assert len(paths(made)) == 8
    made = await service.stub.GenerateOrdering(generation(layers_to_transform=[1]))
    assert paths(made) == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"target_modules": ["q_proj"]}, "either in targets"),
        ({"targets": P.ModuleSelection(pattern="(((")}, "not a regular expression"),
        ({"targets": P.ModuleSelection(pattern="(a+)+$|" + "(.*)*" * 30 + "x")}, "come to an end"),
        ({"exclude_modules": P.ModuleSelection(all_linear=True)}, "all_linear says nothing"),
        ({"layers_to_transform": [7]}, "no layer 7"),
    ],
)
async def test_what_cannot_be_meant_is_refused(service: Service, fields: dict[str, Any], said: str) -> None:
    failure = await failure_of(service.stub.GenerateOrdering(generation(**fields)))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert said in failure.message


async def test_a_generated_ordering_is_stored_with_how_it_was_made_and_once_only(service: Service) -> None:
    request = generation(
        adapter_names=["a", "b"],
        destination=P.Destination(ordering_id="made", kind=P.ADAPTER_KIND_XLORA),
        request_id=str(uuid.uuid4()),
    )
    first = await service.stub.GenerateOrdering(request)
    again = await service.stub.GenerateOrdering(request)
    assert first == again
    assert first.ordering.revision_number == 1
    provenance = first.ordering.provenance
    assert (provenance.method, provenance.config_digest) == ("generated", first.config_digest)
    assert json.loads(provenance.arguments)["target_modules"] == ["q_proj", "v_proj"]
    assert provenance.module_order.startswith("5.")
    exported = await service.stub.ExportOrdering(S.ExportOrderingRequest(name="orderings/made"))
    assert exported.json == first.json


async def test_validate_only_stores_nothing(service: Service) -> None:
    request = generation(destination=P.Destination(ordering_id="made"), validate_only=True)
    assert (await service.stub.GenerateOrdering(request)).ordering.name == "orderings/made"
    failure = await failure_of(service.stub.GetOrdering(S.GetOrderingRequest(name="orderings/made")))
    assert failure.code is grpc.StatusCode.NOT_FOUND


async def test_a_derived_ordering_changes_its_key_only_and_names_its_source(service: Service) -> None:
    file = b'{ "order": ["a"],\n  "base_model_id":"m", "layers": {}}'
    await service.stub.ImportOrdering(S.ImportOrderingRequest(ordering_id="start", json=file))
    request = S.DeriveOrderingRequest(
        name="orderings/start",
        adapter_names=P.AdapterNames(names=["x", "y"]),
        destination=P.Destination(ordering_id="start", allow_existing=True),
        request_id=str(uuid.uuid4()),
    )
    made = await service.stub.DeriveOrdering(request)
    assert made.json == file.replace(b'["a"]', b'["x", "y"]')
    assert made.ordering.revision_number == 2
    assert (made.ordering.provenance.method, made.ordering.provenance.source) == ("derived", "orderings/start@1")
    assert await service.stub.DeriveOrdering(request) == made


async def test_preload_adapters_are_added_and_removed(service: Service) -> None:
    await service.stub.ImportOrdering(S.ImportOrderingRequest(ordering_id="start", json=b'{"base_model_id": "m"}'))
    adapter = P.PreloadAdapter(name="a", adapter_model_id="org/a")
    where = P.Destination(ordering_id="start", allow_existing=True)
    request = S.DeriveOrderingRequest(name="orderings/start", add_preload_adapters=[adapter], destination=where)
    added = await service.stub.DeriveOrdering(request)
    assert json.loads(added.json)["preload_adapters"] == [{"name": "a", "adapter_model_id": "org/a"}]
    failure = await failure_of(service.stub.DeriveOrdering(request))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "preloaded already" in failure.message
    removal = S.DeriveOrderingRequest(name="orderings/start", remove_preload_adapters=["a"])
    assert json.loads((await service.stub.DeriveOrdering(removal)).json)["preload_adapters"] == []
    failure = await failure_of(
        service.stub.DeriveOrdering(S.DeriveOrderingRequest(name="orderings/start", remove_preload_adapters=["z"]))
    )
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "`z` is not preloaded" in failure.message
    failure = await failure_of(service.stub.DeriveOrdering(S.DeriveOrderingRequest(name="orderings/start")))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_file_is_derived_as_a_stored_ordering_is_and_stored_only_if_asked_to(service: Service) -> None:
    file = b'{ "order": ["a"],\n  "base_model_id":"m", "layers": {}}\r\n'
    names = P.AdapterNames(names=["x", "y"])
    made = await service.stub.DeriveOrdering(S.DeriveOrderingRequest(json=file, adapter_names=names))
    assert made.json == file.replace(b'["a"]', b'["x", "y"]')
    assert list(made.document.order.names) == ["x", "y"]
    assert not (await service.stub.ListOrderings(S.ListOrderingsRequest())).orderings
    where = P.Destination(ordering_id="kept")
    request = S.DeriveOrderingRequest(json=file, adapter_names=names, destination=where, request_id=str(uuid.uuid4()))
    stored = await service.stub.DeriveOrdering(request)
    assert (stored.json, stored.ordering.provenance.method) == (made.json, "derived")
    assert (stored.ordering.provenance.source, stored.ordering.revision_number) == ("", 1)
    assert await service.stub.DeriveOrdering(request) == stored


@pytest.mark.parametrize(
    ("request_message", "said"),
    [
        (S.DeriveOrderingRequest(json=b"[1]", adapter_names=P.AdapterNames(names=["x"])), "The file holds a list"),
        (S.DeriveOrderingRequest(json=b'{"order": 1}', adapter_names=P.AdapterNames(names=["x"])), "order is a number"),
        (S.DeriveOrderingRequest(json=b"{}", adapter_names=P.AdapterNames(names=["x"])), "base_model_id"),
        (S.DeriveOrderingRequest(json=b'{"base_model_id": "m"}'), "nothing to derive"),
        (S.DeriveOrderingRequest(json=b'{"base_model_id": "m"}', remove_preload_adapters=["z"]), "not preloaded"),
        (S.DeriveOrderingRequest(adapter_names=P.AdapterNames(names=["x"])), "one of name, json must be set"),
        (S.DeriveOrderingRequest(name="orderings/x", json=b"{}"), "only one of name, json can be set"),
    ],
)
async def test_a_file_that_cannot_be_derived_from_is_refused(
    service: Service, request_message: S.DeriveOrderingRequest, said: str
) -> None:
    failure = await failure_of(service.stub.DeriveOrdering(request_message))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert said in failure.message


async def test_a_derivation_of_itself_happens_once_and_undoes_no_other_change(service: Service) -> None:
    await service.stub.ImportOrdering(S.ImportOrderingRequest(ordering_id="start", json=b'{"base_model_id": "m"}'))

    def adding(name: str) -> Any:
        return S.DeriveOrderingRequest(
            name="orderings/start",
            add_preload_adapters=[P.PreloadAdapter(name=name, adapter_model_id="org/x")],
            destination=P.Destination(ordering_id="start", allow_existing=True),
            request_id=str(uuid.uuid4()),
        )

    requests = [adding(f"n{number}") for number in range(8)]
    answers = await asyncio.gather(*(service.stub.DeriveOrdering(request) for request in requests))
    assert sorted(answer.ordering.revision_number for answer in answers) == list(range(2, 10))
    assert await service.stub.DeriveOrdering(requests[0]) == answers[0]
    newest = await service.stub.GetOrdering(S.GetOrderingRequest(name="orderings/start"))
    assert {adapter.name for adapter in newest.document.preload_adapters.adapters} == {f"n{n}" for n in range(8)}


async def test_generating_what_was_imported_before_is_answered_twice_alike(service: Service) -> None:
    made = await service.stub.GenerateOrdering(generation())
    await service.stub.ImportOrdering(S.ImportOrderingRequest(ordering_id="made", json=made.json))
    where = P.Destination(ordering_id="made", allow_existing=True)
    request = generation(destination=where, request_id=str(uuid.uuid4()))
    first = await service.stub.GenerateOrdering(request)
    assert (first.ordering.revision_number, first.ordering.provenance.method) == (1, "imported")
    assert await service.stub.GenerateOrdering(request) == first


async def test_a_stale_etag_guards_what_is_derived(service: Service) -> None:
    await service.stub.ImportOrdering(S.ImportOrderingRequest(ordering_id="start", json=b'{"base_model_id": "m"}'))
    where = P.Destination(ordering_id="start", allow_existing=True, etag='"stale"')
    names = P.AdapterNames(names=["x"])
    request = S.DeriveOrderingRequest(name="orderings/start", adapter_names=names, destination=where)
    failure = await failure_of(service.stub.DeriveOrdering(request))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")


async def test_a_pattern_of_exponential_time_is_refused_while_others_are_served(service: Service) -> None:
    slow = generation(targets=P.ModuleSelection(pattern="((.+)+)+!"))
    refused = asyncio.ensure_future(failure_of(service.stub.GenerateOrdering(slow)))
    await service.stub.GenerateOrdering(generation())
    assert not refused.done()
    assert (await refused).reason == "PATTERN_TOO_COSTLY"
