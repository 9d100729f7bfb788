"""Stands before every method of ours: decodes, validates, logs with a request id, turns errors into statuses."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_status import rpc_status

from ordering_svc.errors import OrderingServiceError
from ordering_svc.rpc.call_metrics import Call, CallMetrics
from ordering_svc.rpc.contract import decoded
from ordering_svc.rpc.status import status_of, status_of_fault

OUR_METHODS = "/loramux."
REQUEST_ID_KEY = "x-request-id"
MAX_REQUEST_ID_LENGTH = 128

Context = grpc.aio.ServicerContext[Any, Any]

_log = structlog.get_logger(__name__)


class ContractInterceptor(grpc.aio.ServerInterceptor):
    """One for all methods of this service; health and reflection pass through untouched."""

    def __init__(self, request_types: dict[str, type[Message]], metrics: CallMetrics) -> None:
        """`request_types` has the request message of every method of ours, by its path; `metrics` counts calls."""
        self._request_types = request_types
        self._metrics = metrics

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
        request_type = self._request_types[method]
        unary, streaming = handler.unary_unary, handler.unary_stream
        if unary is not None:

            async def guarded(raw: bytes, context: Context) -> Message:
                with self._metrics.measured(method, streams=False) as call:
                    return await _call(method, request_type, unary, raw, context, call)

            return grpc.unary_unary_rpc_method_handler(guarded, response_serializer=handler.response_serializer)
        assert streaming is not None, f"{method} takes a stream: no method of ours does"

        async def guarded_stream(raw: bytes, context: Context) -> AsyncIterator[Message]:
            with self._metrics.measured(method, streams=True) as call:
                async with aclosing(_stream(method, request_type, streaming, raw, context, call)) as responses:
                    async for response in responses:
                        yield response

        return grpc.unary_stream_rpc_method_handler(guarded_stream, response_serializer=handler.response_serializer)


async def _call(
    method: str, request_type: type[Message], behaviour: Any, raw: bytes, context: Context, call: Call
) -> Message:
    request_id = _request_id(context)
    started = time.perf_counter()
    with structlog.contextvars.bound_contextvars(method=_short(method), request_id=request_id):
        try:
            response: Message = await behaviour(decoded(request_type, raw), context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # the last place that can tell the caller; nothing is swallowed
            await _abort(context, error, request_id, _log, started, call)
        context.set_trailing_metadata(_trailer(request_id))
        call.code = "OK"
        _log.info("rpc", code=call.code, seconds=_since(started))
        return response


async def _stream(
    method: str, request_type: type[Message], behaviour: Any, raw: bytes, context: Context, call: Call
) -> AsyncGenerator[Message]:
    """As `_call`, for a method that answers with a stream; one line in the log when it ends, however it does."""
    request_id = _request_id(context)
    started = time.perf_counter()
    # Not by context variables, which could not be reset: a stream that the client drops is closed in another context.
    log = _log.bind(method=_short(method), request_id=request_id)
    is_answered = False
    num_messages = 0
    try:
        async with aclosing(behaviour(decoded(request_type, raw), context)) as responses:
            async for response in responses:
                num_messages += 1
                yield response
    except Exception as error:  # the last place that can tell the caller; nothing is swallowed
        is_answered = True
        await _abort(context, error, request_id, log, started, call)
    else:
        is_answered = True
        context.set_trailing_metadata(_trailer(request_id))
        call.code = "OK"
        log.info("rpc", code=call.code, seconds=_since(started), messages=num_messages)
    finally:
        if not is_answered:
            log.info("rpc", code="CANCELLED", seconds=_since(started), messages=num_messages)


async def _abort(
    context: Context, error: Exception, request_id: str, log: structlog.stdlib.BoundLogger, started: float, call: Call
) -> NoReturn:
    status = _status_of(error, request_id, log)
    call.code = _name(status.code)
    log.info("rpc", code=call.code, reason=_reason(error), seconds=_since(started))
    rich = rpc_status.to_status(status)
    await context.abort(rich.code, rich.details, (*(rich.trailing_metadata or ()), *_trailer(request_id)))
    raise AssertionError("unreachable: abort raises")


def _short(method: str) -> str:
    return method.rpartition("/")[2]


def _trailer(request_id: str) -> tuple[tuple[str, str]]:
    return ((REQUEST_ID_KEY, request_id),)


def _request_id(context: Context) -> str:
    """The caller's own id where it can be printed, else a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and 0 < len(value) <= MAX_REQUEST_ID_LENGTH:
            return value if value.isascii() and value.isprintable() else uuid.uuid4().hex
    return uuid.uuid4().hex


def _status_of(error: Exception, request_id: str, log: structlog.stdlib.BoundLogger) -> status_pb2.Status:
    if isinstance(error, OrderingServiceError):
        return status_of(error, request_id)
    log.error("internal error", exc_info=error)
    return status_of_fault(request_id)


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, OrderingServiceError) else "INTERNAL"


def _name(code: int) -> str:
    return next(known.name for known in grpc.StatusCode if known.value[0] == code)


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 6)
