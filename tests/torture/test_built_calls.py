"""Messages that hypothesis builds from the contract: each is answered with a status that means something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.torture.scale import CALLS, TIMEOUT_SECONDS
from tests.torture.service import SETTINGS, OrderingProcess
from tests.torture.test_random_calls import FAULTS, IDS, SERVICE, called, fit_request

INTEGERS = {
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
}
TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(IDS),
    st.sampled_from(IDS).map(lambda ordering_id: f"orderings/{ordering_id}"),
    st.from_regex(r"orderings/[a-z0-9@-]{1,12}", fullmatch=True),
)


def values(field: Any, depth: int) -> st.SearchStrategy[Any]:
    """Values of one field; a hub is never asked."""
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return messages(GetMessageClass(field.message_type), depth + 1)
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.just("") if field.name == "hub_id" else TEXTS
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=60)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_ENUM:
        return st.integers(-1, 9)
    return INTEGERS[field.type]


@st.composite
def messages(draw: st.DrawFn, type_: type[Message], depth: int = 0) -> Any:
    """A message with any of its fields set."""
    made: Any = type_()
    for field in type_.DESCRIPTOR.fields:
        if not draw(st.booleans()):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(made, field.name).update(draw(st.dictionaries(TEXTS, TEXTS, max_size=2)))
        elif field.message_type is not None and depth >= 3:
            continue
        elif field.is_repeated:
            getattr(made, field.name).extend(draw(st.lists(values(field, depth), max_size=3)))
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(draw(values(field, depth)))
        else:
            setattr(made, field.name, draw(values(field, depth)))
    return made


@st.composite
def requests(draw: st.DrawFn) -> tuple[Any, bytes]:
    """A method and a request: any message, or a fit one with another laid over it."""
    method = draw(st.sampled_from(list(SERVICE.methods)))
    made = draw(messages(GetMessageClass(method.input_type)))
    if draw(st.booleans()):
        fit = fit_request(method.name, draw(st.sampled_from(IDS)))
        for field in draw(st.lists(st.sampled_from(list(method.input_type.fields)), max_size=2)):
            fit.ClearField(field.name)
            fit.MergeFrom(_only(made, field.name))
        made = fit
    return method, made.SerializeToString()


def _only(message: Any, name: str) -> Any:
    kept = type(message)()
    kept.CopyFrom(message)
    for field in message.DESCRIPTOR.fields:
        if field.name != name:
            kept.ClearField(field.name)
    return kept


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    """To one service, which has to outlive every call."""
    folder: Path = tmp_path_factory.mktemp("built")
    service = OrderingProcess(folder / "data", folder / "port")
    with grpc.insecure_channel(service.address(), SETTINGS) as opened:
        yield opened
    assert service.process.poll() is None, "the service died"
    service.kill()


@pytest.mark.timeout(TIMEOUT_SECONDS)
@settings(max_examples=CALLS // 10, deadline=None, suppress_health_check=list(HealthCheck))
@given(request=requests())
def test_no_message_is_a_fault_of_the_service(channel: grpc.Channel, request: tuple[Any, bytes]) -> None:
    method, sent = request
    assert called(channel, method.name, sent, streams=method.server_streaming) not in FAULTS
