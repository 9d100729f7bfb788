"""What the services answer instead of a result, as one exception class for each gRPC status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with a request."""

    field: str
    description: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a failed call said: status code name, sentence, and the rich details that came with it."""

    code: str
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    retry_after_s: float | None = None


class LoramuxError(Exception):
    """Root of everything that the client raises because a service refused or failed.

    `code` is the gRPC status name, `reason` a stable upper-case word for programs, `metadata` its details.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure

    @property
    def message(self) -> str:
        """One sentence for people."""
        return self.failure.message

    @property
    def code(self) -> str:
        """Name of the gRPC status, for instance `NOT_FOUND`."""
        return self.failure.code

    @property
    def reason(self) -> str:
        """Stable, for instance `ADAPTER_NOT_FOUND`; empty if the service gave none."""
        return self.failure.reason

    @property
    def metadata(self) -> Mapping[str, str]:
        """The names and values that the message speaks of."""
        return self.failure.metadata

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Every problem of the request, for INVALID_ARGUMENT."""
        return self.failure.violations

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which a retry makes sense, if the service said so."""
        return self.failure.retry_after_s


class NotFound(LoramuxError):
    """The named adapter, ordering, revision or file does not exist."""


class InvalidArgument(LoramuxError):
    """The request is wrong whatever the state of the service: see `violations`."""


class FailedPrecondition(LoramuxError):
    """The request does not fit the state of the service, for instance an adapter that does not fit the base model."""


class AlreadyExists(LoramuxError):
    """The name is taken."""


class Aborted(LoramuxError):
    """Somebody else changed the resource: read it again, then retry with `current_etag`."""

    @property
    def current_etag(self) -> str | None:
        """The etag that would have been accepted."""
        return self.metadata.get("current_etag")


class ResourceExhausted(LoramuxError):
    """The queue, the memory or a limit is full."""


class Unavailable(LoramuxError):
    """The service cannot be reached, or is draining: retry."""


class PermissionDenied(LoramuxError):
    """The path is outside the allowed roots, or the caller may not do this."""


class Cancelled(LoramuxError):
    """The call was cancelled."""


class DeadlineExceeded(LoramuxError):
    """The answer did not come in time."""


class Internal(LoramuxError):
    """A fault of the service; the message holds the id that its log explains."""


_CLASSES: Mapping[grpc.StatusCode, type[LoramuxError]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.UNIMPLEMENTED: FailedPrecondition,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def invalid_argument(name: str, description: str) -> InvalidArgument:
    """The error for an argument that the client itself can tell is wrong."""
    violation = Violation(field=name, description=description, reason="INVALID_ARGUMENT")
    return InvalidArgument(
        Failure("INVALID_ARGUMENT", f"{name}: {description}", "INVALID_ARGUMENT", violations=(violation,))
    )


def broken_answer(message: str) -> Internal:
    """The error for an answer that breaks the contract."""
    return Internal(Failure("INTERNAL", message, "BROKEN_ANSWER"))


def error_from_rpc(error: grpc.RpcError, address: str) -> LoramuxError:
    """The typed error for what grpc raised, sync or async; `address` names the service that was called."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return Internal(Failure("UNKNOWN", str(error)))
    code = error.code() or grpc.StatusCode.UNKNOWN
    metadata = error.trailing_metadata() or ()
    packed = next((value for key, value in metadata if key == _DETAILS_KEY), None)
    failure = _failure(code, error.details() or code.name, packed if isinstance(packed, bytes) else None, address)
    return _CLASSES.get(code, Internal)(failure)


def _failure(code: grpc.StatusCode, message: str, packed: bytes | None, address: str) -> Failure:
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after_s: float | None = None
    status = status_pb2.Status.FromString(packed) if packed else status_pb2.Status()
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            detail.Unpack(bad_request)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    if code is grpc.StatusCode.UNAVAILABLE and packed is None:
        # grpc's own text is about sockets; people want to know which service is away.
        message = f"no service answers at {address}: is it running? ({message.rpartition('last error: ')[2]})"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED and packed is None:
        message = f"{address} did not answer in time"
    violations = tuple(Violation(v.field, v.description, v.reason) for v in bad_request.field_violations)
    return Failure(code.name, message, info.reason, dict(info.metadata), violations, retry_after_s)
