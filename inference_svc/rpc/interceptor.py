"""Stands before every method: decodes, validates, names the request in the log, and turns errors into statuses."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc_status import rpc_status

from inference_svc.errors import InferenceError
from inference_svc.rpc.call_metrics import Call, CallMetrics
from inference_svc.rpc.contract import problems_of
from inference_svc.rpc.status import FieldProblem, status_of, status_of_fault, status_of_problems
from inference_svc.rpc.translation import as_inference_error

OUR_METHODS = "/loramux."

Context = grpc.aio.ServicerContext[Any, Any]

_log = structlog.get_logger(__name__)


class _RefusedError(Exception):
    """The request breaks its contract."""

    def __init__(self, problems: list[FieldProblem]) -> None:
        super().__init__(problems)
        self.problems = problems


class ContractInterceptor(grpc.aio.ServerInterceptor):
    """One for all methods of this service; health and reflection pass through untouched."""

    def __init__(self, metrics: CallMetrics) -> None:
        """Every call is counted there."""
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The method's handler inside ours, which decodes: bytes that are no message are the caller's fault."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or not method.startswith(OUR_METHODS):
            return handler
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                _guarded_stream(self._metrics, method, handler.request_deserializer, handler.unary_stream),
                response_serializer=handler.response_serializer,
            )
        assert handler.unary_unary is not None, f"{method} streams its request: no method of ours does"
        return grpc.unary_unary_rpc_method_handler(
            _guarded_call(self._metrics, method, handler.request_deserializer, handler.unary_unary),
            response_serializer=handler.response_serializer,
        )


def _guarded_call(metrics: CallMetrics, method: str, decode: Any, behaviour: Any) -> Any:
    async def guarded(raw: bytes, context: Context) -> Message:
        with metrics.measured(method, streams=False) as call:
            try:
                response: Message = await behaviour(_accepted(method, decode, raw), context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await _abort(context, error, call)
                raise AssertionError("abort never returns") from error
            call.code = "OK"
            return response

    return guarded


def _guarded_stream(metrics: CallMetrics, method: str, decode: Any, behaviour: Any) -> Any:
    async def guarded(raw: bytes, context: Context) -> AsyncIterator[Message]:
        with metrics.measured(method, streams=True) as call:
            try:
                async with aclosing(behaviour(_accepted(method, decode, raw), context)) as responses:
                    async for response in responses:
                        yield response
                call.code = "OK"
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await _abort(context, error, call)

    return guarded


def _accepted(method: str, decode: Callable[[bytes], Message], raw: bytes) -> Message:
    """The decoded request, bound to the log lines of this call.

    Raises:
        _RefusedError: it cannot be parsed, or breaks a rule of the contract.
    """
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(method=method.rpartition("/")[2])
    try:
        request = decode(raw)
    except DecodeError:
        raise _RefusedError(
            [FieldProblem("", f"the request is not a message of {method}", "MALFORMED_MESSAGE")]
        ) from None
    request_id = getattr(request, "request_id", "")
    if request_id:
        structlog.contextvars.bind_contextvars(request_id=request_id)
    problems = problems_of(request)
    if problems:
        raise _RefusedError(problems)
    return request


async def _abort(context: Context, error: Exception, call: Call) -> None:
    """End the call with the status of an error; never returns normally."""
    status = _status_of(error)
    call.code = next(code.name for code in grpc.StatusCode if code.value[0] == status.code)
    await context.abort_with_status(rpc_status.to_status(status))


def _status_of(error: Exception) -> status_pb2.Status:
    if isinstance(error, _RefusedError):
        _log.info("request refused", problems=[f"{problem.field}: {problem.description}" for problem in error.problems])
        return status_of_problems(error.problems)
    known = error if isinstance(error, InferenceError) else as_inference_error(error)
    if known is not None:
        _log.info("request failed", reason=known.reason, message=known.message)
        return status_of(known)
    fault_id = uuid.uuid4().hex
    _log.error("internal error", fault_id=fault_id, exc_info=error)
    return status_of_fault(fault_id)
