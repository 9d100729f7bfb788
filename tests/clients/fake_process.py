"""A service process for tests of `loramux up`: the fakes behind the command line of the real services.

FAKE_BEHAVIOUR, for instance `inference:stubborn`, makes one of them misbehave; FAKE_EVENTS collects what happened.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.clients.fakes import serve


def run(name: str) -> None:
    """Serves until SIGTERM, as `name` (`ordering` or `inference`)."""
    parser = argparse.ArgumentParser(description=f"help of {name}")
    parser.add_argument("--listen", required=True)
    parser.add_argument("--port-file", type=Path, required=True)
    given, _ = parser.parse_known_args()
    events = Path(os.environ["FAKE_EVENTS"])
    behaviour = os.environ.get("FAKE_BEHAVIOUR", "").partition(f"{name}:")[2]

    def note(event: str) -> None:
        with events.open("a") as file:
            file.write(f"{name} {event}\n")

    note(f"started {os.getpid()} {' '.join(sys.argv[1:])}")
    if behaviour == "misconfigured":
        sys.stderr.write(f'{{"event": "the {name} is misconfigured", "level": "error", "key": 1}}\n')
        sys.exit(2)
    if behaviour == "downloading":
        sys.stderr.write('{"event": "downloading", "name": "org/name", "percent": 40, "size": "2.0 GiB"}\n')
        sys.stderr.flush()
        time.sleep(0.5)
    stop = threading.Event()

    def asked_to_end(number: int, frame: FrameType | None) -> None:
        note("asked to end")
        stop.set()

    signal.signal(signal.SIGTERM, asked_to_end)
    signal.signal(signal.SIGINT, lambda *_: note("interrupted"))
    if behaviour == "never_ready":
        stop.wait()
        return
    server, services = serve()
    status = health.HealthServicer()
    status.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    given.port_file.with_suffix(".new").write_text(services.address)
    given.port_file.with_suffix(".new").rename(given.port_file)
    time.sleep(0.2)
    note("serving")
    status.set("", health_pb2.HealthCheckResponse.SERVING)
    if behaviour == "dies":
        stop.wait(0.5)
        sys.stderr.write("out of memory, says the fake\n")
        sys.stderr.flush()
        os._exit(7)
    stop.wait()
    if behaviour == "stubborn":
        while True:
            time.sleep(0.05)
    time.sleep(0.2)
    for request in services.ordering.seen:
        note(f"imported {request.ordering_id} kind {request.kind} at {request.adapter_model_id}")
    note("drained")
    server.stop(grace=None)
