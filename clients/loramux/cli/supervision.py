"""Starts services one after the other, watches them, and ends them in the opposite order."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loramux.cli.problems import INTERRUPTED, CommandError
from loramux.cli.processes import ServiceProcess

TICK_S = 0.05
"""How often the services are looked at, in seconds."""


class StopRequests:
    """Counts SIGINT, SIGTERM and SIGHUP inside a `with` block: the first asks to drain, the second to kill."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.count = 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.count += 1

    def __enter__(self) -> StopRequests:
        self._before = [signal.signal(number, self._note) for number in self._SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in zip(self._SIGNALS, self._before, strict=True):
            signal.signal(number, handler)


class Supervisor:
    """Holds the services of one `loramux up`. Leaving its `with` block ends them all.

    `watch` is called on every tick with each service, for instance to show its log.
    """

    def __init__(self, stops: StopRequests, watch: Callable[[ServiceProcess], None]) -> None:
        self._stops = stops
        self._watch = watch
        self._services: list[ServiceProcess] = []

    def start(self, name: str, program: Sequence[str], log: Path, port_file: Path) -> ServiceProcess:
        """Starts a service; it is not ready yet."""
        service = ServiceProcess(name, program, log, port_file)
        self._services.append(service)
        return service

    def wait_until_serving(self, service: ServiceProcess) -> str:
        """The address of the service, once its health says SERVING.

        Raises CommandError if a service ends, or the user stops the start.
        """
        while (address := service.address()) is None:
            self._tick_or_stop()
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while not _is_serving(health):
                self._tick_or_stop()
        return address

    def wait_for_stop(self) -> None:
        """Returns when the user asks to stop. Raises CommandError if a service ends before that."""
        while self._stops.count == 0:
            self._tick()

    def _tick_or_stop(self) -> None:
        if self._stops.count > 0:
            raise CommandError("STOPPED", "stopped before the services were ready", INTERRUPTED)
        self._tick()

    def _tick(self) -> None:
        time.sleep(TICK_S)
        for service in self._services:
            self._watch(service)
            if service.exit_code is not None:
                raise _ended(service)

    def stop(self) -> bool:
        """Ends the services, the last started first, each after the one before has drained.

        A second request to stop kills what is left. Returns False if it came to that.
        """
        for service in reversed(self._services):
            service.terminate()
            while service.exit_code is None:
                self._watch(service)
                if self._stops.count > 1:
                    self._kill_all()
                    return False
                time.sleep(TICK_S)
            self._watch(service)
        return True

    def _kill_all(self) -> None:
        for service in self._services:
            service.kill()
        while any(service.exit_code is None for service in self._services):
            time.sleep(TICK_S)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _is_serving(health: health_pb2_grpc.HealthStub) -> bool:
    try:
        answer = health.Check(  # type: ignore[attr-defined]
            health_pb2.HealthCheckRequest(), timeout=2.0
        )
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _ended(service: ServiceProcess) -> CommandError:
    code = service.exit_code
    assert code is not None
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    lines = "".join(f"\n  {line}" for line in service.last_log_lines())
    return CommandError("SERVICE_ENDED", f"the {service.name} service {how}; the end of {service.log}:{lines}")
