"""The gRPC server around the service: address, health, readiness, drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from inference_svc.config import Config, ConfigError, StartError, host_and_port
from inference_svc.logs import configure_logs
from inference_svc.metrics_server import MetricsServer
from inference_svc.rpc.adapter_servicer import AdapterServicer
from inference_svc.rpc.call_metrics import CallMetrics
from inference_svc.rpc.inference_servicer import InferenceServicer
from inference_svc.rpc.interceptor import ContractInterceptor
from inference_svc.rpc.ordering_copies import write_atomically
from inference_svc.rpc.ports import Service
from loramux.inference.v1 import (
    adapter_service_pb2,
    adapter_service_pb2_grpc,
    inference_service_pb2,
    inference_service_pb2_grpc,
)

MAX_MESSAGE_BYTES = 16 * 2**20
FLUSH_SECONDS = 2.0  # for clients to read what the engine has already said
SERVICE_NAMES = (
    inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    adapter_service_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name,
)
SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a silent partner
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)
EXIT_DRAINED = 0
EXIT_CUT_SHORT = 1

OpenService = Callable[[Config], Awaitable[Service]]

_log = structlog.get_logger(__name__)


class InferenceServer:
    """Binds its address when it is made, serves from `start` on; make and use it in one event loop."""

    def __init__(self, listen: str, *, metrics_port: int | None = None, watch_seconds: float = 1.0) -> None:
        """Bind the address; with a port for metrics, serve them on the same host at once.

        Raises:
            ConfigError: one of them is taken, or not an address of this machine.
        """
        calls = CallMetrics()
        self._server = grpc.aio.server(interceptors=[ContractInterceptor(calls)], options=SERVER_OPTIONS)
        try:
            port = self._server.add_insecure_port(listen)
        except RuntimeError:
            raise ConfigError(
                f"--listen {listen}: the address cannot be bound: is another server running there?"
            ) from None
        self.address = f"{listen.rpartition(':')[0]}:{port}"
        self._metrics = None if metrics_port is None else MetricsServer(host_and_port(listen)[0], metrics_port)
        if self._metrics is not None:
            self._metrics.add(calls.registry)
        self._health = health.aio.HealthServicer()
        self._watch_seconds = watch_seconds
        self._watchdog: asyncio.Task[None] | None = None
        self._service: Service | None = None

    @property
    def metrics_address(self) -> str | None:
        """Where metrics are served, if they are."""
        return None if self._metrics is None else self._metrics.address

    async def start(self, service: Service) -> None:
        """Take calls from now on; the engine runs already."""
        self._service = service
        if self._metrics is not None:
            for collector in service.collectors:
                self._metrics.add(collector)
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(
            InferenceServicer(service.engine, service.tokenizer, service.description, service.version), self._server
        )
        adapter_service_pb2_grpc.add_AdapterServiceServicer_to_server(
            AdapterServicer(service.adapters, service.orderings, service.followed), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        await self._say(is_serving=service.engine.is_healthy)
        await self._server.start()
        self._watchdog = asyncio.create_task(self._watch(service))

    async def drain(self, seconds: float) -> bool:
        """Refuse new requests, let the running ones end, and stop; False if some had to be cut short."""
        service = self._service
        if service is None:
            await self.stop_now()
            return True
        await self._say(is_serving=False)
        is_drained = await asyncio.to_thread(service.engine.drain, seconds)
        await self._stop(service, FLUSH_SECONDS)
        return is_drained

    async def stop_now(self) -> None:
        """End everything; running requests fail with UNAVAILABLE."""
        if self._service is None:
            await self._server.start()  # a server that never started keeps its address
            await self._server.stop(0)
            await self._close_metrics()
        else:
            await self._stop(self._service, 0)

    async def _stop(self, service: Service, flush_seconds: float) -> None:
        # The engine first: what still runs then ends with a status of ours instead of a broken connection.
        await asyncio.to_thread(service.engine.stop)
        if self._watchdog is not None:
            self._watchdog.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watchdog
        await self._server.stop(flush_seconds)
        await self._close_metrics()
        await service.close()

    async def _close_metrics(self) -> None:
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)

    async def _watch(self, service: Service) -> None:
        """Tell load balancers as soon as the engine is dead."""
        while service.engine.is_healthy:
            await asyncio.sleep(self._watch_seconds)
        _log.error("the engine has stopped: nothing can be generated until the service is restarted")
        await self._say(is_serving=False)

    async def _say(self, *, is_serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *SERVICE_NAMES):
            await self._health.set(name, status)


@asynccontextmanager
async def running(config: Config, open_service: OpenService) -> AsyncIterator[str]:
    """The whole service on this event loop, ready; yields its address and drains at the end.

    Raises:
        StartError: the address is taken, the model cannot be loaded, or an ordering cannot be applied.
    """
    server = await _started(config, open_service)
    try:
        _announce(config, server)
        yield server.address
    finally:
        await server.drain(config.drain_seconds)


def serve_until_told_to_stop(config: Config) -> int:
    """Run the service; SIGTERM or SIGINT drains it, a second one ends it at once. Returns the exit status.

    Raises:
        StartError: as for `running`.
    """
    from inference_svc.service import open_service  # torch: only the process that serves needs it

    configure_logs(config.log_format)
    # Until it serves, an interrupt ends the process: asyncio would wait for the thread that downloads or loads, and
    # there is nothing to put in order. A shell that started it with SIGINT ignored keeps it so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return asyncio.run(serve(config, sparing_what_is_here(open_service)))


def sparing_what_is_here(open_service: OpenService) -> OpenService:
    """The same, and what there is once it is done stays out of later garbage collections: for a process that serves.

    A full one goes through 200,000 objects of libraries and of the model, and for the tenth of a second that this takes
    nobody gets a token; it comes once so many new objects are there, as after loads of adapters.
    """

    async def open_and_spare(config: Config) -> Service:
        service = await open_service(config)
        gc.collect()
        gc.freeze()
        return service

    return open_and_spare


async def _started(config: Config, open_service: OpenService) -> InferenceServer:
    server = InferenceServer(config.listen, metrics_port=config.metrics_port)
    try:
        await server.start(await open_service(config))
    except BaseException:
        await server.stop_now()
        raise
    return server


def _announce(config: Config, server: InferenceServer) -> None:
    """Say that the service is ready, to people and to whoever waits for the port file.

    Raises:
        StartError: the port file cannot be written.
    """
    if config.port_file is not None:
        try:
            write_atomically(config.port_file, f"{server.address}\n")
        except OSError as error:
            raise StartError(f"--port-file {config.port_file}: {error.strerror or error}") from None
    _log.info("ready", address=server.address, metrics=server.metrics_address)


async def serve(config: Config, open_service: OpenService) -> int:
    """Run until a signal drains it, a second one ends it at once; returns the exit status.

    Raises:
        StartError: as for `running`.
    """
    server = await _started(config, open_service)
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    try:
        _announce(config, server)
    except StartError:
        await server.stop_now()
        raise
    first = await signals.get()
    _log.info("draining", signal=first.name, seconds=config.drain_seconds)
    draining = asyncio.create_task(server.drain(config.drain_seconds))
    second = asyncio.create_task(signals.get())
    await asyncio.wait({draining, second}, return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        _log.warning("stopping at once", signal=second.result().name)
        await server.stop_now()
        await draining
        return EXIT_CUT_SHORT
    second.cancel()
    _log.info("stopped", all_requests_ended=draining.result())
    return EXIT_DRAINED
