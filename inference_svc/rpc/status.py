"""Turns every error into a gRPC status: the only place that knows which code an error has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from inference_svc import errors

DOMAIN = "loramux.inference"
RETRY_AFTER_SECONDS = 1

# A client drops an answer whose trailing metadata exceeds 8 KiB, and non-ASCII text triples on the wire.
MAX_MESSAGE_BYTES = 600
MAX_VALUE_BYTES = 200
MAX_VALUES = 6
MAX_VIOLATIONS_BYTES = 1500

# Searched along the class's method resolution order, so a subclass may have a code of its own.
CODES: Mapping[type[errors.InferenceError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.AdapterNotFound: grpc.StatusCode.NOT_FOUND,
    errors.SourceNotFound: grpc.StatusCode.NOT_FOUND,
    errors.OrderingNotFound: grpc.StatusCode.NOT_FOUND,
    errors.AdapterExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.AdapterMalformed: grpc.StatusCode.INVALID_ARGUMENT,
    errors.SourceChanged: grpc.StatusCode.ABORTED,
    errors.DigestMismatch: grpc.StatusCode.ABORTED,
    errors.AdapterUnfit: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AdapterUnsupported: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AdapterWrongKind: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AdapterInUse: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OrderingUnfit: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PathNotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.LimitReached: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.InferenceError: grpc.StatusCode.INTERNAL,
}
RETRIABLE = (errors.QueueFull, errors.Unavailable)


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """What is wrong with one field of a request."""

    field: str  # dotted path, for instance `stopping.stop[1]`
    description: str
    reason: str = ""  # UPPER_SNAKE, stable


def code_of(error: errors.InferenceError) -> grpc.StatusCode:
    """The status code of an error: that of its nearest class in CODES."""
    return next(CODES[ancestor] for ancestor in type(error).__mro__ if ancestor in CODES)


def status_of(error: errors.InferenceError) -> status_pb2.Status:
    """The whole status of an error: code, sentence, reason and the fitting details."""
    status = _status(code_of(error), error.message, error.reason, error.metadata)
    if isinstance(error, errors.InvalidRequest):
        _attach_problems(status, [FieldProblem(error.field, error.message, error.reason)])
    if isinstance(error, RETRIABLE):
        delay = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_SECONDS))
        status.details.add().Pack(delay)
    return status


def status_of_problems(problems: Sequence[FieldProblem]) -> status_pb2.Status:
    """INVALID_ARGUMENT for a request that breaks the contract's own rules; at least one problem."""
    first = problems[0]
    rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = f"{first.field}: {first.description}{rest}"
    status = _status(grpc.StatusCode.INVALID_ARGUMENT, message, errors.InvalidRequest.reason, {"field": first.field})
    _attach_problems(status, problems)
    return status


def status_of_fault(fault_id: str) -> status_pb2.Status:
    """INTERNAL for our own fault: the log entry with this id has the story."""
    return _status(grpc.StatusCode.INTERNAL, f"internal error {fault_id}", "INTERNAL", {"id": fault_id})


def _status(code: grpc.StatusCode, message: str, reason: str, metadata: Mapping[str, str]) -> status_pb2.Status:
    number, _ = code.value
    status = status_pb2.Status(code=number, message=shortened(message, MAX_MESSAGE_BYTES))
    named = {key: shortened(value, MAX_VALUE_BYTES) for key, value in list(metadata.items())[:MAX_VALUES]}
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=named))
    return status


def _attach_problems(status: status_pb2.Status, problems: Sequence[FieldProblem]) -> None:
    bad_request = error_details_pb2.BadRequest()
    for problem in problems:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=shortened(problem.field, MAX_VALUE_BYTES),
            description=shortened(problem.description, MAX_MESSAGE_BYTES),
            reason=problem.reason,
        )
        if bad_request.ByteSize() + violation.ByteSize() > MAX_VIOLATIONS_BYTES:
            break
        bad_request.field_violations.append(violation)
    status.details.add().Pack(bad_request)


def shortened(text: str, max_bytes: int) -> str:
    """The text in at most this many bytes of valid UTF-8; a cut ends in three dots."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return encoded.decode()
    return encoded[: max_bytes - 3].decode("utf-8", "ignore") + "..."
