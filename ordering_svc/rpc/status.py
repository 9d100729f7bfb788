"""Turns every error into a gRPC status: the only place that knows which code an error has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from ordering_svc import errors

DOMAIN = "loramux.ordering"
RETRY_AFTER_SECONDS = 1

# A client drops an answer whose trailing metadata exceeds 8 KiB, and non-ASCII text triples on the wire.
MAX_MESSAGE_BYTES = 600
MAX_VALUE_BYTES = 200
MAX_VIOLATIONS_BYTES = 2500

# Searched along the class's method resolution order, so a subclass may have a code of its own.
CODES: Mapping[type[errors.OrderingServiceError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.OrderingExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.EtagMismatch: grpc.StatusCode.ABORTED,
    errors.PathNotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.OrderingDeleted: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OrderingNotDeleted: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TooManyTags: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DatabaseNotWritable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DatabaseFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.OrderingServiceError: grpc.StatusCode.INTERNAL,
}


def code_of(error: errors.OrderingServiceError) -> grpc.StatusCode:
    """The status code of an error: that of its nearest class in CODES."""
    return next(CODES[ancestor] for ancestor in type(error).__mro__ if ancestor in CODES)


def status_of(error: errors.OrderingServiceError, request_id: str) -> status_pb2.Status:
    """The whole status of an error: code, sentence, reason and the fitting details."""
    code = code_of(error)
    metadata = dict(error.metadata)
    if isinstance(error, errors.InvalidRequest):
        shown = _violations(error.violations)
        if len(shown.field_violations) < len(error.violations):
            metadata |= {"num_violations": str(len(error.violations))}
    status = _status(code, error.message, error.reason, metadata, request_id)
    if isinstance(error, errors.InvalidRequest):
        status.details.add().Pack(shown)
    if isinstance(error, errors.NotFound | errors.OrderingExists):
        resource = error_details_pb2.ResourceInfo(
            resource_type=error.resource_type,
            resource_name=shortened(error.resource, MAX_VALUE_BYTES),
            description=shortened(error.message, MAX_VALUE_BYTES),
        )
        status.details.add().Pack(resource)
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=error.reason,
            subject=shortened(next(iter(error.metadata.values()), ""), MAX_VALUE_BYTES),
            description=shortened(error.message, MAX_VALUE_BYTES),
        )
        status.details.add().Pack(error_details_pb2.PreconditionFailure(violations=[violation]))
    if code is grpc.StatusCode.UNAVAILABLE:
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_SECONDS)))
    return status


def status_of_fault(request_id: str) -> status_pb2.Status:
    """INTERNAL for our own fault: the log entry with this request id has the story."""
    message = f"internal error; the service's log explains it under the request id {request_id}"
    return _status(grpc.StatusCode.INTERNAL, message, "INTERNAL", {"id": request_id}, request_id)


def _status(
    code: grpc.StatusCode, message: str, reason: str, metadata: Mapping[str, str], request_id: str
) -> status_pb2.Status:
    number, _ = code.value
    status = status_pb2.Status(code=number, message=shortened(message, MAX_MESSAGE_BYTES))
    named = {key: shortened(value, MAX_VALUE_BYTES) for key, value in metadata.items()}
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=named))
    status.details.add().Pack(error_details_pb2.RequestInfo(request_id=request_id))
    return status


def _violations(violations: Sequence[errors.Violation]) -> error_details_pb2.BadRequest:
    """As many violations as fit into an answer, from the first on; at least one."""
    bad_request = error_details_pb2.BadRequest()
    for violation in violations:
        field = error_details_pb2.BadRequest.FieldViolation(
            field=shortened(violation.field, MAX_VALUE_BYTES),
            description=shortened(violation.description, MAX_MESSAGE_BYTES),
            reason=violation.reason,
        )
        if bad_request.field_violations and bad_request.ByteSize() + field.ByteSize() > MAX_VIOLATIONS_BYTES:
            break
        bad_request.field_violations.append(field)
    return bad_request


def shortened(text: str, max_bytes: int) -> str:
    """The text in at most this many bytes of valid UTF-8; a cut ends in three dots."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return encoded.decode()
    return encoded[: max_bytes - 3].decode("utf-8", "ignore") + "..."
