"""One of Loramux's services as a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

START_SECONDS = 300.0


class ServiceProcess:
    """Started when it is made, ready when that returns; closing it ends it."""

    def __init__(self, module: str, folder: Path, *flags: str) -> None:
        """Start it on a free port; its data, log and port file lie in the folder.

        Raises:
            RuntimeError: it ended, or was not ready in time.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        port_file = folder / "port"
        port_file.unlink(missing_ok=True)
        program = [sys.executable, "-m", module, "--listen", "127.0.0.1:0", "--port-file", str(port_file)]
        began = time.perf_counter()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([*program, "--data-dir", str(folder), *flags], stdout=log, stderr=log)
        self.pid = self._process.pid
        while not port_file.exists():
            if self._process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                self.close()
                raise RuntimeError(f"{module} did not become ready: see {self.log}")
            time.sleep(0.002)
        self.seconds_to_ready = time.perf_counter() - began
        self.address = port_file.read_text().strip()

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()
