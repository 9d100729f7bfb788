"""Stands before every method of ours: decodes, validates, logs with a request id, turns errors into statuses."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_status import rpc_status

from ordering_svc.errors import OrderingServiceError
from ordering_svc.rpc.contract import decoded
from ordering_svc.rpc.status import status_of, status_of_fault

OUR_METHODS = "/loramux."
REQUEST_ID_KEY = "x-request-id"
MAX_REQUEST_ID_LENGTH = 128

Context = grpc.aio.ServicerContext[Any, Any]

_log = structlog.get_logger(__name__)


class ContractInterceptor(grpc.aio.ServerInterceptor):
    """One for all methods of this service; health and reflection pass through untouched."""

    def __init__(self, request_types: dict[str, type[Message]]) -> None:
        """`request_types` has the request message of every method of ours, by its path."""
        self._request_types = request_types

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The method's handler inside ours, which decodes by itself: malformed bytes are the caller's fault."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or not method.startswith(OUR_METHODS):
            return handler
        behaviour = handler.unary_unary
        assert behaviour is not None, f"{method} streams: no method of ours does"
        request_type = self._request_types[method]

        async def guarded(raw: bytes, context: Context) -> Message:
            return await _call(method, request_type, behaviour, raw, context)

        return grpc.unary_unary_rpc_method_handler(guarded, response_serializer=handler.response_serializer)


async def _call(method: str, request_type: type[Message], behaviour: Any, raw: bytes, context: Context) -> Message:
    request_id = _request_id(context)
    trailer = ((REQUEST_ID_KEY, request_id),)
    started = time.perf_counter()
    with structlog.contextvars.bound_contextvars(method=method.rpartition("/")[2], request_id=request_id):
        try:
            response: Message = await behaviour(decoded(request_type, raw), context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # the last place that can tell the caller; nothing is swallowed
            status = _status_of(error, request_id)
            _log.info("rpc", code=_name(status.code), reason=_reason(error), seconds=_since(started))
            rich = rpc_status.to_status(status)
            await context.abort(rich.code, rich.details, (*(rich.trailing_metadata or ()), *trailer))
        context.set_trailing_metadata(trailer)
        _log.info("rpc", code="OK", seconds=_since(started))
        return response


def _request_id(context: Context) -> str:
    """The caller's own id where it can be printed, else a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and 0 < len(value) <= MAX_REQUEST_ID_LENGTH:
            return value if value.isascii() and value.isprintable() else uuid.uuid4().hex
    return uuid.uuid4().hex


def _status_of(error: Exception, request_id: str) -> status_pb2.Status:
    if isinstance(error, OrderingServiceError):
        return status_of(error, request_id)
    _log.error("internal error", exc_info=error)
    return status_of_fault(request_id)


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, OrderingServiceError) else "INTERNAL"


def _name(code: int) -> str:
    return next(known.name for known in grpc.StatusCode if known.value[0] == code)


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 6)
