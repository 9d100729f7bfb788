"""How a fake service refuses a call."""

from __future__ import annotations

from typing import NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status


def refuse(
    context: grpc.ServicerContext,
    code: grpc.StatusCode,
    message: str,
    reason: str,
    violations: tuple[tuple[str, str], ...] = (),
    **metadata: str,
) -> NoReturn:
    """Ends a call as the services do: with an ErrorInfo, and a BadRequest where there are violations."""
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="loramux", metadata=metadata)]
    if violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=name, description=text) for name, text in violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort returned")
