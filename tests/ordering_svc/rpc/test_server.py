"""The service as its clients see it: a real server, a real channel."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2, ordering_service_pb2_grpc
from ordering_svc.errors import DatabaseBusy, DatabaseFull, DatabaseNotWritable, OrderingServiceError
from tests.contract.ordering_store_fake import DictionaryStore
from tests.ordering_svc.rpc.conftest import Serve, Service, failure_of

P: Any = ordering_pb2
S: Any = ordering_service_pb2
SERVICE = ordering_service_pb2.DESCRIPTOR.services_by_name["OrderingService"]
FILE = b'{ "base_model_id":"org/model",\n "extra": [1], "layers": {"b": 1, "a": 0}, "order": ["m\\u00e4th", "bio"] }\n'


def document(*names: str) -> Any:
    return P.OrderingDocument(order=P.AdapterNames(names=names), base_model_id="org/model")


def create(ordering_id: str = "demo", **fields: Any) -> Any:
    return S.CreateOrderingRequest(
        ordering_id=ordering_id, ordering=P.Ordering(**({"document": document("a")} | fields))
    )


def imported(file: bytes = FILE, ordering_id: str = "demo", **fields: Any) -> Any:
    return S.ImportOrderingRequest(ordering_id=ordering_id, json=file, **fields)


def name(text: str = "orderings/demo") -> dict[str, str]:
    return {"name": text}


async def test_an_ordering_is_created_read_changed_listed_and_deleted(service: Service) -> None:
    stub = service.stub
    made = await stub.CreateOrdering(create(kind=P.ADAPTER_KIND_XLORA, document=xlora(), labels={"team": "a"}))
    assert (made.name, made.revision_number, made.kind) == ("orderings/demo", 1, P.ADAPTER_KIND_XLORA)
    assert made.provenance.method == "written"
    assert await stub.GetOrdering(S.GetOrderingRequest(**name())) == made

    changed = await stub.UpdateOrdering(
        S.UpdateOrderingRequest(name=made.name, etag=made.etag, document=document("a"), kind=P.ADAPTER_KIND_LORA)
    )
    assert (changed.revision_number, dict(changed.labels)) == (2, {"team": "a"})
    assert changed.etag != made.etag
    for revision in ("1", made.revision_id, made.revision_id[:6]):
        old = await stub.GetOrdering(S.GetOrderingRequest(name=f"{made.name}@{revision}"))
        assert (old.revision_id, old.document) == (made.revision_id, made.document)

    listed = await stub.ListOrderings(S.ListOrderingsRequest())
    assert (list(listed.orderings), listed.next_page_token) == ([changed], "")
    deleted = await stub.DeleteOrdering(S.DeleteOrderingRequest(name=made.name, etag=changed.etag))
    assert deleted.ordering == changed
    assert (await failure_of(stub.GetOrdering(S.GetOrderingRequest(**name())))).code is grpc.StatusCode.NOT_FOUND
    assert (await failure_of(stub.CreateOrdering(create()))).code is grpc.StatusCode.ALREADY_EXISTS


def xlora() -> Any:
    return P.OrderingDocument(
        order=P.AdapterNames(names=["a", "b"]),
        layers=P.LayerRows(rows=[P.LayerRow(path="x", row=0)]),
        base_model_id="org/model",
    )


async def test_a_file_comes_back_byte_for_byte(service: Service) -> None:
    made = await service.stub.ImportOrdering(imported())
    assert list(made.document.order.names) == ["mäth", "bio"]
    assert [row.path for row in made.document.layers.rows] == ["b", "a"]
    assert made.provenance.method == "imported"

    written_back = await service.stub.UpdateOrdering(S.UpdateOrderingRequest(name=made.name, document=made.document))
    assert written_back == made
    exported = await service.stub.ExportOrdering(S.ExportOrderingRequest(name=f"{made.name}@{made.revision_id}"))
    assert (exported.json, exported.revision_id) == (FILE, made.revision_id)


async def test_an_import_adds_a_revision_only_when_told_to(service: Service) -> None:
    first = await service.stub.ImportOrdering(imported(description="kept", kind=P.ADAPTER_KIND_LORA))
    other = FILE.replace(b"bio", b"law")

    assert (await failure_of(service.stub.ImportOrdering(imported(other)))).reason == "ORDERING_EXISTS"
    second = await service.stub.ImportOrdering(imported(other, allow_existing=True, etag=first.etag))
    assert (second.revision_number, second.description, second.kind) == (2, "kept", P.ADAPTER_KIND_LORA)
    stale = await failure_of(service.stub.ImportOrdering(imported(allow_existing=True, etag=first.etag)))
    assert stale.code is grpc.StatusCode.ABORTED
    assert (await service.stub.ImportOrdering(imported(other, allow_existing=True))) == second
    missing = await failure_of(service.stub.ImportOrdering(imported(FILE, "new", allow_existing=True, etag='"1"')))
    assert missing.code is grpc.StatusCode.NOT_FOUND
    lonely = await failure_of(service.stub.ImportOrdering(imported(FILE, "new", etag='"1"')))
    assert lonely.details["BadRequest"].field_violations[0].field == "etag"
    await service.stub.DeleteOrdering(S.DeleteOrderingRequest(**name()))
    deleted = await failure_of(service.stub.ImportOrdering(imported(allow_existing=True)))
    assert (deleted.code, deleted.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ORDERING_DELETED")


async def test_a_stale_etag_is_refused_with_the_current_one(service: Service) -> None:
    first = await service.stub.CreateOrdering(create())
    update = S.UpdateOrderingRequest(name=first.name, etag=first.etag, description="new")
    second = await service.stub.UpdateOrdering(update)

    for call in (
        service.stub.UpdateOrdering(update),
        service.stub.DeleteOrdering(S.DeleteOrderingRequest(name=first.name, etag=first.etag)),
    ):
        failure = await failure_of(call)
        assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
        assert failure.details["ErrorInfo"].metadata["current_etag"] == second.etag


async def test_every_problem_of_a_refused_document_is_one_violation(service: Service) -> None:
    failure = await failure_of(service.stub.ImportOrdering(imported(b'{"order": ["a", "a"], "layers": {"x": "0"}}')))
    violations = failure.details["BadRequest"].field_violations
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ORDERING")
    assert [(v.field, v.reason) for v in violations] == [
        ("json.order[1]", "ORDER_DUPLICATE"),
        ('json.layers["x"]', "ROW_TYPE"),
        ("json.base_model_id", "BASE_MODEL_ID_MISSING"),
    ]
    many = b'{"layers": {' + b",".join(b'"%d": "x"' % i for i in range(5000)) + b"}}"
    crowded = await failure_of(service.stub.ImportOrdering(imported(many)))
    assert crowded.details["ErrorInfo"].metadata["num_problems"] == "5001"
    assert len(crowded.details["BadRequest"].field_violations) > 5


async def test_a_broken_rule_of_the_contract_names_the_value(service: Service) -> None:
    failure = await failure_of(service.stub.ListOrderings(S.ListOrderingsRequest(page_size=-5)))
    (violation,) = failure.details["BadRequest"].field_violations
    assert (failure.code, violation.field) == (grpc.StatusCode.INVALID_ARGUMENT, "page_size")
    assert violation.description.endswith("(got -5)")


async def test_a_change_that_makes_the_whole_invalid_is_refused(service: Service) -> None:
    await service.stub.CreateOrdering(create())
    call = service.stub.UpdateOrdering(S.UpdateOrderingRequest(**name(), kind=P.ADAPTER_KIND_XLORA))
    assert [v.reason for v in (await failure_of(call)).details["BadRequest"].field_violations] == ["LAYERS_MISSING"]


NOT_FOUND, INVALID = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT
DENIED, UNAVAILABLE = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE


def generation(targets: list[str] | None = None, **fields: Any) -> Any:
    model = {key: fields.pop(key) for key in ("path", "hub_id", "config_json") if key in fields}
    return S.GenerateOrderingRequest(model=P.ModelReference(**model), target_modules=targets or ["q_proj"], **fields)


@pytest.mark.parametrize(
    ("method", "request_message", "code", "reason"),
    [
        ("CreateOrdering", create("No"), INVALID, "INVALID_REQUEST"),
        ("CreateOrdering", create("bad-"), INVALID, "INVALID_REQUEST"),
        ("CreateOrdering", S.CreateOrderingRequest(ordering_id="a"), INVALID, "INVALID_REQUEST"),
        ("CreateOrdering", create(document=P.OrderingDocument()), INVALID, "INVALID_ORDERING"),
        ("CreateOrdering", create(description="a\0"), INVALID, "INVALID_REQUEST"),
        ("CreateOrdering", create(labels={"": "x"}), INVALID, "INVALID_REQUEST"),
        ("CreateOrdering", create(kind=7), INVALID, "INVALID_REQUEST"),
        ("GetOrdering", S.GetOrderingRequest(name="demo"), INVALID, "INVALID_REQUEST"),
        ("GetOrdering", S.GetOrderingRequest(name="orderings/Demo"), INVALID, "INVALID_NAME"),
        ("GetOrdering", S.GetOrderingRequest(name="orderings/demo@"), INVALID, "INVALID_NAME"),
        ("GetOrdering", S.GetOrderingRequest(name="orderings/demo@0"), INVALID, "INVALID_NAME"),
        ("GetOrdering", S.GetOrderingRequest(name="orderings/nobody"), NOT_FOUND, "ORDERING_NOT_FOUND"),
        ("ExportOrdering", S.ExportOrderingRequest(name="orderings/nobody@1"), NOT_FOUND, "ORDERING_NOT_FOUND"),
        ("UpdateOrdering", S.UpdateOrderingRequest(name="orderings/a@1"), INVALID, "INVALID_NAME"),
        ("UpdateOrdering", S.UpdateOrderingRequest(name="orderings/nobody"), NOT_FOUND, "ORDERING_NOT_FOUND"),
        ("DeleteOrdering", S.DeleteOrderingRequest(name="orderings/nobody"), NOT_FOUND, "ORDERING_NOT_FOUND"),
        ("ListOrderings", S.ListOrderingsRequest(page_size=-1), INVALID, "INVALID_REQUEST"),
        ("ListOrderings", S.ListOrderingsRequest(page_token="AAAA"), INVALID, "INVALID_PAGE_TOKEN"),
        ("ListOrderings", S.ListOrderingsRequest(page_token="ü="), INVALID, "INVALID_PAGE_TOKEN"),
        ("ListOrderingRevisions", S.ListOrderingRevisionsRequest(name="orderings/x"), NOT_FOUND, "ORDERING_NOT_FOUND"),
        ("ValidateOrdering", S.ValidateOrderingRequest(), INVALID, "INVALID_REQUEST"),
        ("ValidateOrdering", S.ValidateOrderingRequest(name="orderings/x"), NOT_FOUND, "ORDERING_NOT_FOUND"),
        ("GenerateOrdering", generation(path="nowhere"), NOT_FOUND, "MODEL_NOT_FOUND"),
        ("GenerateOrdering", generation(path="../.."), DENIED, "PATH_NOT_ALLOWED"),
        ("GenerateOrdering", generation(path="/etc/passwd"), DENIED, "PATH_NOT_ALLOWED"),
        ("GenerateOrdering", generation(path="a\0b"), INVALID, "INVALID_REQUEST"),
        ("GenerateOrdering", generation(path="x" * 4000), NOT_FOUND, "MODEL_NOT_FOUND"),
        ("GenerateOrdering", generation(hub_id="no id/at all/!"), INVALID, "INVALID_REQUEST"),
        ("GenerateOrdering", generation(hub_id="org/away"), UNAVAILABLE, "HUB_UNAVAILABLE"),
        ("GenerateOrdering", generation(config_json="[]"), INVALID, "MODEL_CONFIG_INVALID"),
        ("GenerateOrdering", generation(config_json='{"model_type": "bert"}'), INVALID, "ARCHITECTURE_UNKNOWN"),
        ("GenerateOrdering", generation(["none"], path="tiny"), INVALID, "TARGET_MODULE_UNMATCHED"),
        ("GenerateOrdering", generation(path="tiny", adapter_names=["a", "a"]), INVALID, "INVALID_ORDERING"),
    ],
)
async def test_each_bad_request_has_its_code_and_reason(
    serve: Serve, tmp_path: Path, method: str, request_message: Message, code: grpc.StatusCode, reason: str
) -> None:
    async with serve(hub_endpoint="http://127.0.0.1:1") as service:
        failure = await failure_of(getattr(service.stub, method)(request_message))

    assert (failure.code, failure.reason) == (code, reason)
    assert ("BadRequest" in failure.details) == (code is INVALID)
    assert ("ResourceInfo" in failure.details) == (code is NOT_FOUND)
    assert ("RetryInfo" in failure.details) == (code is UNAVAILABLE)


async def test_an_ordering_is_generated_from_a_folder_and_can_be_imported(service: Service) -> None:
    made = await service.stub.GenerateOrdering(
        generation(["lm_head", "q_proj"], path="tiny", adapter_names=["a", "b"], base_model_id="org/tiny")
    )
    assert [row.path for row in made.document.layers.rows] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "lm_head",
    ]
    assert (made.architecture, len(made.config_digest)) == ("llama", 64)
    stored = await service.stub.ImportOrdering(imported(made.json))
    assert stored.document == made.document


async def test_validation_answers_with_problems_and_never_fails_for_the_document(service: Service) -> None:
    model = P.ModelReference(path="tiny")
    answer = await service.stub.ValidateOrdering(
        S.ValidateOrderingRequest(json=b"{", kind=P.ADAPTER_KIND_XLORA, model=model, quantized_architecture="phi3")
    )
    assert (answer.valid, [p.code for p in answer.problems]) == (False, ["JSON_INVALID"])
    await service.stub.ImportOrdering(imported())
    stored = await service.stub.ValidateOrdering(S.ValidateOrderingRequest(**name(), model=model))
    assert [p.code for p in stored.problems] == ["UNKNOWN_KEY", "LAYER_UNKNOWN", "LAYER_UNKNOWN"]
    as_document = await service.stub.ValidateOrdering(S.ValidateOrderingRequest(document=document("a")))
    assert as_document.valid
    assert [p.severity for p in as_document.problems] == [P.SEVERITY_WARNING]


async def test_pages_miss_nothing_and_tokens_are_bound_to_their_list(service: Service) -> None:
    ids = [f"o{number}" for number in range(7)]
    for ordering_id in ids:
        await service.stub.CreateOrdering(create(ordering_id))
    for number in range(3):
        await service.stub.UpdateOrdering(S.UpdateOrderingRequest(name="orderings/o0", document=document(f"n{number}")))

    seen: list[str] = []
    token = ""
    while True:
        page = await service.stub.ListOrderings(S.ListOrderingsRequest(page_size=3, page_token=token))
        seen += [ordering.name for ordering in page.orderings]
        if not page.next_page_token:
            break
        token = page.next_page_token
    assert seen == [f"orderings/{ordering_id}" for ordering_id in ids]

    revisions = S.ListOrderingRevisionsRequest
    first = await service.stub.ListOrderingRevisions(revisions(name="orderings/o0", page_size=2))
    rest = await service.stub.ListOrderingRevisions(
        revisions(name="orderings/o0", page_size=1000, page_token=first.next_page_token)
    )
    assert [o.revision_number for o in (*first.revisions, *rest.revisions)] == [4, 3, 2, 1]
    tampered = ("B" if token[0] == "A" else "A") + token[1:]
    for call in (
        service.stub.ListOrderings(S.ListOrderingsRequest(page_token=first.next_page_token)),
        service.stub.ListOrderings(S.ListOrderingsRequest(page_token=tampered)),
        service.stub.ListOrderingRevisions(revisions(name="orderings/o1", page_token=first.next_page_token)),
    ):
        assert (await failure_of(call)).reason == "INVALID_PAGE_TOKEN"


async def test_every_answer_names_its_request(service: Service) -> None:
    call = service.stub.ListOrderings(S.ListOrderingsRequest(), metadata=(("x-request-id", "mine-1"),))
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine-1"
    made = service.stub.ListOrderings(S.ListOrderingsRequest())
    await made
    assert len(dict(await made.trailing_metadata())["x-request-id"]) == 32
    failure = await failure_of(
        service.stub.GetOrdering(S.GetOrderingRequest(**name()), metadata=(("x-request-id", "mine-2"),))
    )
    assert failure.details["RequestInfo"].request_id == "mine-2"


class BrokenStore(DictionaryStore):
    """Raises what it was given from every read."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def get(self, *arguments: Any, **options: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (DatabaseNotWritable("ro"), grpc.StatusCode.FAILED_PRECONDITION, "DATABASE_NOT_WRITABLE"),
        (DatabaseBusy("busy"), grpc.StatusCode.UNAVAILABLE, "DATABASE_BUSY"),
        (DatabaseFull("full"), grpc.StatusCode.RESOURCE_EXHAUSTED, "DATABASE_FULL"),
        (OrderingServiceError("?"), grpc.StatusCode.INTERNAL, "ORDERING_SERVICE_ERROR"),
        (ValueError("secret text"), grpc.StatusCode.INTERNAL, "INTERNAL"),
    ],
)
async def test_store_failures_and_faults_are_typed(
    serve: Serve, error: Exception, code: grpc.StatusCode, reason: str
) -> None:
    async with serve(BrokenStore(error)) as service:
        failure = await failure_of(service.stub.GetOrdering(S.GetOrderingRequest(**name())))
    assert (failure.code, failure.reason) == (code, reason)
    assert "secret" not in failure.message


async def test_health_and_reflection_are_on(service: Service) -> None:
    health: Any = health_pb2_grpc.HealthStub(service.channel)
    for checked in ("", SERVICE.full_name):
        answer: Any = await health.Check(health_pb2.HealthCheckRequest(service=checked))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    channel: Any = service.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    listed = {found.name async for answer in call for found in answer.list_services_response.service}
    assert SERVICE.full_name in listed


async def code_of(call: Any) -> grpc.StatusCode:
    """How a call ended."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_random_bytes_to_any_method_are_never_our_fault(service: Service) -> None:
    generator = random.Random(7)
    valid = [create(), imported(), generation(path="tiny"), S.ValidateOrderingRequest(json=FILE)]
    for method in SERVICE.methods:
        call: Any = service.channel.unary_unary(f"/{SERVICE.full_name}/{method.name}")
        for round_ in range(60):
            raw = generator.randbytes(generator.randrange(40))
            if round_ % 2:  # a valid message with one byte changed reaches further
                mutated = bytearray(generator.choice(valid).SerializeToString())
                mutated[generator.randrange(len(mutated))] = generator.randrange(256)
                raw = bytes(mutated)
            # A watch goes on until its deadline, unless it is refused.
            code = await code_of(call(raw, timeout=0.1 if method.server_streaming else 60))
            assert code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), (method.name, raw)


async def test_a_message_beyond_the_limit_is_refused(service: Service) -> None:
    over = await failure_of(service.stub.ImportOrdering(imported(b" " * (16 * 2**20 + 1))))
    assert (over.code, over.details["BadRequest"].field_violations[0].field) == (INVALID, "json")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await service.stub.ImportOrdering(imported(b" " * (18 * 2**20)))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_eight_clients_that_compare_and_set_lose_no_update(service: Service) -> None:
    await service.stub.CreateOrdering(create(description="0"))

    async def add(times: int) -> None:
        async with grpc.aio.insecure_channel(service.address) as channel:
            stub: Any = ordering_service_pb2_grpc.OrderingServiceStub(channel)
            while times:
                current = await stub.GetOrdering(S.GetOrderingRequest(**name()))
                number = int(current.description) + 1
                update = S.UpdateOrderingRequest(
                    **name(), etag=current.etag, description=str(number), document=document(f"n{number}")
                )
                code = await code_of(stub.UpdateOrdering(update))
                assert code in (grpc.StatusCode.OK, grpc.StatusCode.ABORTED)
                times -= code is grpc.StatusCode.OK

    await asyncio.gather(*(add(10) for _ in range(8)))
    final = await service.stub.GetOrdering(S.GetOrderingRequest(**name()))
    assert (final.description, final.revision_number) == ("80", 81)


async def test_unguarded_changes_at_once_all_happen(service: Service) -> None:
    await service.stub.CreateOrdering(create())
    updates = [S.UpdateOrderingRequest(**name(), document=document(f"n{number}")) for number in range(20)]
    made = await asyncio.gather(*(service.stub.UpdateOrdering(update) for update in updates))
    assert sorted(ordering.revision_number for ordering in made) == list(range(2, 22))


async def test_a_restart_keeps_everything_page_tokens_too(serve: Serve) -> None:
    async with serve() as service:
        kept = [await service.stub.CreateOrdering(create(ordering_id)) for ordering_id in ("a", "b")]
        token = (await service.stub.ListOrderings(S.ListOrderingsRequest(page_size=1))).next_page_token
    async with serve() as service:
        assert await service.stub.GetOrdering(S.GetOrderingRequest(name="orderings/a")) == kept[0]
        rest = await service.stub.ListOrderings(S.ListOrderingsRequest(page_size=1, page_token=token))
        assert list(rest.orderings) == [kept[1]]


async def test_it_serves_on_a_unix_socket_and_says_so_in_the_port_file(serve: Serve, tmp_path: Path) -> None:
    address = f"unix:{os.path.relpath(tmp_path / 's')}"
    async with serve(listen=address, port_file=tmp_path / "port") as service:
        assert (tmp_path / "port").read_text() == f"{address}\n"
        assert not list((await service.stub.ListOrderings(S.ListOrderingsRequest())).orderings)
