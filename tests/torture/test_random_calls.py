"""Random bytes and random messages to every method: each is answered with a status that means something."""

from __future__ import annotations

import random
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2
from tests.torture.scale import CALLS, TIMEOUT_SECONDS
from tests.torture.service import SETTINGS, OrderingProcess

P: Any = ordering_pb2
S: Any = ordering_service_pb2
SERVICE = ordering_service_pb2.DESCRIPTOR.services_by_name["OrderingService"]
FAULTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED)
IDS = [f"o{number}" for number in range(8)]
TEXTS = [
    "", "a", "\0", "é" * 70, "orderings/", "orderings/a/b", "*", "\u202e", "x" * 5000, "{}", "[" * 500, "^(a+)+$", "-1",
    "orderings/o1@prod", "orderings/o1@1", "orderings/o2@999999999999999999", "prod", "kind = xlora", "((((", "name:",
    'labels.team = "nlp" AND NOT (kind = lora OR -kind = lora)', '"1-0"', "lora", "q_proj", "all-linear", "name desc",
    '{"model_type": "llama", "num_hidden_layers": 2}', '{"base_model_id": "m", "order": ["a"]}', "/etc/passwd", "../..",
    "model.layers.0.self_attn.q_proj", "a/b", "a/b@c",
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 5, 63, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)]


DOCUMENT = P.OrderingDocument(base_model_id="m", order=P.AdapterNames(names=["a"]))
MODEL = P.ModelReference(config_json='{"model_type": "llama", "num_hidden_layers": 2}')
Q_PROJ = P.ModuleSelection(names=P.ModuleNames(names=["q_proj"]))


def fit_request(method: str, ordering_id: str) -> Any:
    """A request that succeeds if the ordering is in the state for it."""
    name = {"name": f"orderings/{ordering_id}"}
    fields: dict[str, dict[str, Any]] = {
        "CreateOrdering": {"ordering_id": ordering_id, "ordering": P.Ordering(document=DOCUMENT)},
        "UpdateOrdering": name | {"document": P.OrderingDocument(base_model_id=ordering_id)},
        "RollbackOrdering": name | {"revision": "1"},
        "TagRevision": name | {"tag": "prod"},
        "UntagRevision": name | {"tag": "prod"},
        "DiffOrderings": {"before": f"orderings/{ordering_id}@1", "after": f"orderings/{ordering_id}"},
        "ImportOrdering": {"ordering_id": ordering_id, "json": b'{"base_model_id": "m"}', "allow_existing": True},
        "GenerateOrdering": {"model": MODEL, "targets": Q_PROJ, "base_model_id": "m"},
        "DeriveOrdering": name | {"adapter_names": P.AdapterNames(names=["b"])},
        "ListOrderings": {},
        "WatchOrderings": {},
    }
    return getattr(S, f"{method}Request")(**fields.get(method, name))


class Generator:
    """Builds messages field by field, more often fit than not, so that calls get past the first check."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def message(self, type_: type[Message], depth: int = 0) -> Any:
        """A message with some of its fields set."""
        made: Any = type_()
        for field in type_.DESCRIPTOR.fields:
            if self.chance.random() < (0.35 if field.name in ("validate_only", "filter", "page_token") else 0.75):
                self._fill(made, field, depth)
        return made

    def nearly_fit(self, method: Any) -> Any:
        """A fit request with none, one or two fields filled anew."""
        made = fit_request(method.name, self.chance.choice(IDS))
        for field in self.chance.choices(list(method.input_type.fields), k=self.chance.choice([0, 0, 1, 2])):
            made.ClearField(field.name)
            self._fill(made, field, 0)
        return made

    def _fill(self, made: Any, field: Any, depth: int) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            made_map = getattr(made, field.name)
            made_map[self._text("labels")] = self._text("labels")
        elif field.is_repeated:
            for _ in range(self.chance.choice([0, 1, 1, 2, 5])):
                if field.message_type is not None:
                    if depth < 4:
                        getattr(made, field.name).append(self.message(GetMessageClass(field.message_type), depth + 1))
                else:
                    getattr(made, field.name).append(self._scalar(field))
        elif field.message_type is not None:
            if depth < 4:
                getattr(made, field.name).CopyFrom(self.message(GetMessageClass(field.message_type), depth + 1))
        else:
            setattr(made, field.name, self._scalar(field))

    def _scalar(self, field: Any) -> Any:
        kinds = FieldDescriptor
        if field.type == kinds.TYPE_STRING:
            return self._text(field.name)
        if field.type == kinds.TYPE_BYTES:
            return self.chance.choice([b"", b"{", self._text("json").encode(), self.chance.randbytes(50)])
        if field.type == kinds.TYPE_BOOL:
            return self.chance.random() < 0.4
        if field.type == kinds.TYPE_ENUM:
            return self.chance.choice([0, 1, 2, 3, 77, -1])
        limits = {
            kinds.TYPE_INT32: (-(2**31), 2**31 - 1),
            kinds.TYPE_UINT32: (0, 2**32 - 1),
            kinds.TYPE_INT64: (-(2**63), 2**63 - 1),
        }.get(field.type, (0, 2**31 - 1))
        return min(max(self.chance.choice(NUMBERS), limits[0]), limits[1])

    def _text(self, name: str) -> str:
        if self.chance.random() < 0.6:
            fit = {
                "ordering_id": self.chance.choice(IDS),
                "name": f"orderings/{self.chance.choice(IDS)}",
                "before": f"orderings/{self.chance.choice(IDS)}@1",
                "after": f"orderings/{self.chance.choice(IDS)}",
                "names": f"orderings/{self.chance.choice(IDS)}",
                "request_id": str(uuid.UUID(int=self.chance.getrandbits(8))),
                "tag": self.chance.choice(["prod", "test", "abcdef"]),
                "revision": self.chance.choice(["1", "2", "prod", "0"]),
                "base_model_id": "m",
                "order_by": self.chance.choice(["ordering_id", "update_time desc"]),
                "json": '{"base_model_id": "m"}',
                "config_json": '{"model_type": "llama", "num_hidden_layers": 2}',
                "hub_id": "",  # would wait for a hub
            }
            if name in fit:
                return fit[name]
        if name == "hub_id":
            return self.chance.choice(["", "/", "a b", "x" * 600])
        return self.chance.choice(TEXTS)


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_every_call_is_answered_and_none_is_a_fault_of_the_service(tmp_path: Path) -> None:
    service = OrderingProcess(tmp_path / "data", tmp_path / "port")
    generator = Generator(20261124)
    methods = list(SERVICE.methods)
    answered: dict[tuple[str, str], int] = {}
    faults: list[str] = []
    with grpc.insecure_channel(service.address(), SETTINGS) as channel:
        for number in range(CALLS):
            method = methods[number % len(methods)]
            kind = generator.chance.random()
            if kind < 0.1:
                sent = generator.chance.randbytes(generator.chance.choice([0, 1, 7, 60, 3000]))
            elif kind < 0.5:
                sent = generator.nearly_fit(method).SerializeToString()
            else:
                sent = generator.message(GetMessageClass(method.input_type)).SerializeToString()
            code = called(channel, method.name, sent, streams=method.server_streaming)
            answered[method.name, code.name] = answered.get((method.name, code.name), 0) + 1
            if code in FAULTS:
                faults.append(f"{method.name} -> {code.name}: {sent[:300]!r}")
        probe: Any = health_pb2_grpc.HealthStub(channel)
        health = probe.Check(health_pb2.HealthCheckRequest())
    assert service.process.poll() is None
    service.kill()
    assert not faults, faults[:5]
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    succeeded = {name for (name, code) in answered if code in ("OK", "DEADLINE_EXCEEDED")}
    assert succeeded >= {method.name for method in methods}, f"never got through: {answered}"
    print(f"{CALLS} calls of {len(methods)} methods: {len(faults)} faults")  # noqa: T201 - for the README


def called(channel: grpc.Channel, method: str, sent: bytes, *, streams: bool) -> grpc.StatusCode:
    """The status that the call of a method with these bytes ends in; a stream is left after its first message."""
    path = f"/{SERVICE.full_name}/{method}"
    try:
        if streams:
            opened: Any = channel.unary_stream(path)
            call = opened(sent, timeout=0.3)
            next(iter(call), None)
            call.cancel()
        else:
            call_once: Any = channel.unary_unary(path)
            call_once(sent, timeout=60)
    except grpc.RpcError as error:
        code = error.code()
        assert isinstance(code, grpc.StatusCode)
        return code
    return grpc.StatusCode.OK
