"""Every error class against the code that errors.py promises, and what details a client gets."""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from inference_svc import errors
from inference_svc.errors import InferenceError, InvalidRequest
from inference_svc.rpc.status import (
    FieldProblem,
    code_of,
    status_of,
    status_of_fault,
    status_of_problems,
)
from inference_svc.rpc.translation import OF_WEIGHTS, as_inference_error
from inference_svc.tokenization.errors import ChatTemplateError, TokenizationError
from inference_svc.weights.errors import WeightsError

GRPC_METADATA_LIMIT = 8192


def classes_below(root: type[InferenceError]) -> Iterator[type[InferenceError]]:
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from classes_below(child)


def promised_codes() -> dict[str, str]:
    """Class name -> code, read from the tree in the docstring of errors.py; a child has its parent's unless it says."""
    assert errors.__doc__ is not None
    promised: dict[str, str] = {}
    parent_code = ""
    for line in errors.__doc__.splitlines():
        found = re.match(r"^([│ ]*)[├└]── (\w+)(.*)$", line)
        if found is None:
            continue
        code = re.search(r"([A-Z_]{6,})$", found.group(3))
        if code is not None:
            parent_code = code.group(1)
        promised[found.group(2)] = parent_code
    return promised


def make(kind: type[InferenceError], message: str = "a sentence", **metadata: str) -> InferenceError:
    return (
        kind("sampling.top_p", message, **metadata) if issubclass(kind, InvalidRequest) else kind(message, **metadata)
    )


def details_of(status: status_pb2.Status) -> dict[str, Message]:
    found: dict[str, Message] = {}
    for packed in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            message = kind()
            if packed.Unpack(message):
                assert kind.__name__ not in found, "each kind of detail at most once"
                found[kind.__name__] = message
    return found


def test_the_docstring_promises_a_code_for_every_class() -> None:
    assert set(promised_codes()) == {kind.__name__ for kind in classes_below(InferenceError)}


@pytest.mark.parametrize("kind", list(classes_below(InferenceError)), ids=lambda kind: kind.__name__)
def test_every_error_has_the_promised_code_a_reason_and_its_values(kind: type[InferenceError]) -> None:
    error = make(kind, adapter="pirate")
    assert code_of(error).name == promised_codes()[kind.__name__]
    status = status_of(error)
    assert (status.code, status.message) == (code_of(error).value[0], "a sentence")
    details = details_of(status)
    info = details["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (kind.reason, "loramux.inference")
    assert info.metadata["adapter"] == "pirate"
    assert ("BadRequest" in details) == issubclass(kind, InvalidRequest)
    assert ("RetryInfo" in details) == issubclass(kind, errors.QueueFull | errors.Unavailable)


def test_reasons_are_unique_and_stable_in_form() -> None:
    reasons = [kind.reason for kind in classes_below(InferenceError)]
    assert len(set(reasons)) == len(reasons)
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]{0,61}[A-Z0-9]", reason) for reason in reasons)


def test_an_invalid_request_names_its_field_in_the_violation() -> None:
    bad_request = details_of(status_of(InvalidRequest("sampling.top_p", "a sentence")))["BadRequest"]
    assert isinstance(bad_request, error_details_pb2.BadRequest)
    (violation,) = bad_request.field_violations
    assert (violation.field, violation.description) == ("sampling.top_p", "a sentence")


def test_a_new_kind_of_error_without_an_entry_gets_the_code_of_its_parent() -> None:
    class QueueVeryFull(errors.QueueFull):
        reason = "QUEUE_VERY_FULL"

    assert code_of(QueueVeryFull("x")) is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("letter", ["x", "\u0416", "\U0001f600", "\udc80", "\n"])
def test_no_error_is_too_large_or_too_odd_to_arrive(letter: str) -> None:
    text = letter * 5000
    statuses = [
        status_of(InvalidRequest(text, text, **{f"key{index}": text for index in range(20)})),
        status_of(errors.QueueFull(text, name=text)),
        status_of_problems([FieldProblem(text, text, "rule")] * 100),
    ]
    for status in statuses:
        on_the_wire = 3 * len(status.message.encode()) + len(status.SerializeToString()) * 4 // 3
        assert on_the_wire < GRPC_METADATA_LIMIT
        assert status.message.endswith("...")


def test_a_fault_of_ours_tells_its_id_and_nothing_else() -> None:
    status = status_of_fault("0f0f")
    assert (status.code, status.message) == (grpc.StatusCode.INTERNAL.value[0], "internal error 0f0f")


@pytest.mark.parametrize("kind", list(OF_WEIGHTS), ids=lambda kind: kind.__name__)
def test_an_error_of_a_file_becomes_an_error_of_the_request(kind: type[WeightsError]) -> None:
    translated = as_inference_error(kind("model.safetensors", "is broken"))
    assert type(translated) is OF_WEIGHTS[kind]
    assert translated.message == "model.safetensors: is broken"


def test_every_error_of_a_file_is_known() -> None:
    assert {kind for kind in WeightsError.__subclasses__() if not issubclass(kind, tuple(OF_WEIGHTS))} == set()


def test_an_error_of_the_tokenizer_is_the_fault_of_the_prompt() -> None:
    chat = as_inference_error(ChatTemplateError("no role 'tool'"))
    assert isinstance(chat, InvalidRequest)
    assert chat.field == "prompt.chat"
    other = as_inference_error(TokenizationError("odd"))
    assert isinstance(other, InvalidRequest)
    assert other.field == "prompt"


def test_any_other_error_is_our_fault() -> None:
    assert as_inference_error(ValueError("x")) is None
