"""Ordering services as processes, which can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc

from loramux.ordering.v1 import ordering_service_pb2_grpc

SETTINGS = (("grpc.enable_retries", 0), ("grpc.max_reconnect_backoff_ms", 200), ("grpc.use_local_subchannel_pool", 1))


class OrderingProcess:
    """One `loramux-ordering` on a data folder."""

    def __init__(self, data_dir: Path, port_file: Path) -> None:
        self._port_file = port_file
        port_file.unlink(missing_ok=True)
        flags = ["--data-dir", str(data_dir), "--listen", "127.0.0.1:0", "--port-file", str(port_file)]
        quiet = {**os.environ, "LORAMUX_ORDERING_LOG_LEVEL": "error"}
        self.process = subprocess.Popen([sys.executable, "-m", "ordering_svc", *flags], env=quiet)

    def address(self) -> str:
        """Where it listens; waits until it does."""
        while not self._port_file.exists():
            assert self.process.poll() is None, "the service did not start"
            time.sleep(0.01)
        return self._port_file.read_text().strip()

    def kill(self) -> None:
        """End it without a chance to say anything."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def stub_for(channel: grpc.Channel) -> Any:
    """The methods of the service."""
    return ordering_service_pb2_grpc.OrderingServiceStub(channel)
