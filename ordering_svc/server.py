"""The gRPC server around the service: composition, address, health, readiness, drain."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import grpc
import structlog
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from loramux.ordering.v1 import ordering_service_pb2, ordering_service_pb2_grpc
from ordering_svc.config import UNIX_SCHEMES, Config
from ordering_svc.errors import CannotStart
from ordering_svc.judge import Judge
from ordering_svc.metrics_server import MetricsServer
from ordering_svc.model_config.reader import ModelReader
from ordering_svc.orderings import Orderings
from ordering_svc.persistence.measured_store import StoreMetrics, measured
from ordering_svc.persistence.sql_store import SqlStore
from ordering_svc.persistence.store import OrderingStore
from ordering_svc.rpc.call_metrics import CallMetrics
from ordering_svc.rpc.interceptor import ContractInterceptor
from ordering_svc.rpc.servicer import OrderingServicer

SERVICE = ordering_service_pb2.DESCRIPTOR.services_by_name["OrderingService"]
MAX_MESSAGE_BYTES = 17 * 2**20  # a file of 16 MiB and what stands beside it
SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a silent partner
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)

_log = structlog.get_logger(__name__)


class OrderingServer:
    """Binds its address when it is made, serves from `start` on; make and use it in one event loop."""

    def __init__(self, config: Config, store: OrderingStore) -> None:
        """Put the parts together and bind the address, and that of metrics; the store is closed with the server.

        Raises:
            CannotStart: an address is taken, or not one of this machine.
        """
        self._config = config
        calls, storage = CallMetrics(), StoreMetrics()
        self._store = measured(store, storage)
        self._health = health.aio.HealthServicer()
        self._storage = ThreadPoolExecutor(config.storage_threads, thread_name_prefix="storage")
        self._models = ThreadPoolExecutor(config.model_threads, thread_name_prefix="models")
        models = ModelReader(config.model_roots, config.hub_endpoint)
        judge = Judge(models, config.model_roots, config.adapter_roots)
        orderings = Orderings(self._store, models, judge, version("loramux"))
        interceptor = ContractInterceptor(_request_types(), calls)
        self._server = grpc.aio.server(interceptors=[interceptor], options=SERVER_OPTIONS)
        self._servicer = OrderingServicer(
            orderings,
            self._storage,
            self._models,
            poll_seconds=config.watch_poll_seconds,
            heartbeat_seconds=config.watch_heartbeat_seconds,
        )
        ordering_service_pb2_grpc.add_OrderingServiceServicer_to_server(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.address = self._bound_address()
        self._metrics = None if config.metrics_port is None else MetricsServer(config.metrics_host, config.metrics_port)
        if self._metrics is not None:
            self._metrics.add(calls.registry)
            self._metrics.add(storage.registry)

    @property
    def metrics_address(self) -> str | None:
        """Where metrics are served, if they are."""
        return None if self._metrics is None else self._metrics.address

    async def start(self) -> None:
        """Take calls from now on."""
        await self._say(is_serving=True)
        await self._server.start()

    async def drain(self, seconds: float) -> None:
        """Refuse new calls, end watches, let the other calls end for so long, then stop and close the store."""
        await self._say(is_serving=False)
        self._servicer.stop_watches()
        await self._server.stop(seconds)
        await asyncio.to_thread(self._shut_down)

    def _shut_down(self) -> None:
        self._storage.shutdown(cancel_futures=True)
        self._models.shutdown(wait=False, cancel_futures=True)  # a hub that hangs must not keep us
        if self._metrics is not None:
            self._metrics.close()
        self._store.close()

    async def _say(self, *, is_serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE.full_name):
            await self._health.set(name, status)

    def _bound_address(self) -> str:
        listen = self._config.listen
        try:
            port = self._server.add_insecure_port(listen)
        except RuntimeError:
            message = f"--listen {listen}: the address cannot be bound: is another server running there?"
            raise CannotStart(message) from None
        return listen if listen.startswith(UNIX_SCHEMES) else f"{listen.rpartition(':')[0]}:{port}"


def open_store(config: Config) -> OrderingStore:
    """The store that the settings name; blocking.

    Raises:
        CannotStart, DatabaseNotWritable, DatabaseUnreadable, DatabaseBusy, DatabaseFull, DatabaseUnreachable: it cannot
            be used.
    """
    if config.database_url is None:
        try:
            config.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"--data-dir {config.data_dir}: the folder cannot be made: {error.strerror or error}"
            raise CannotStart(message) from None
    return SqlStore(config.database(), busy_timeout_ms=config.busy_timeout_ms)


@asynccontextmanager
async def running(config: Config, store: OrderingStore | None = None) -> AsyncIterator[OrderingServer]:
    """The whole service on this event loop, ready; drains at the end.

    Raises:
        CannotStart: the address is taken, or the port file cannot be written.
        OrderingServiceError: the database cannot be used, as `open_store` says.
    """
    opened = await asyncio.to_thread(open_store, config) if store is None else store
    try:
        server = OrderingServer(config, opened)
    except BaseException:
        opened.close()
        raise
    try:
        await server.start()
        if config.port_file is not None:
            _write_atomically(config.port_file, f"{server.address}\n")
        yield server
    finally:
        await server.drain(config.drain_seconds)


async def serve(config: Config, ready: Callable[[str], None] | None = None) -> None:
    """Run the service until SIGTERM or SIGINT, then drain; `ready` is called with the address once calls are taken.

    Raises:
        OrderingServiceError: it does not come up, as for `running`.
    """
    told_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_stop.set)
    try:
        async with running(config) as server:
            _log.info("ready", address=server.address, metrics=server.metrics_address)
            if ready is not None:
                ready(server.address)
            await told_to_stop.wait()
            _log.info("draining", seconds=config.drain_seconds)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    _log.info("stopped")


def _request_types() -> dict[str, type[Message]]:
    return {f"/{SERVICE.full_name}/{method.name}": GetMessageClass(method.input_type) for method in SERVICE.methods}


def _write_atomically(path: Path, text: str) -> None:
    """Whoever waits for the file sees the whole text or no file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text)
        beside.replace(path)
    except OSError as error:
        raise CannotStart(f"--port-file {path}: it cannot be written: {error.strerror or error}") from None
