"""The command itself: starts, drains, survives a kill, and says in one line why it cannot start."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2, ordering_service_pb2_grpc

P: Any = ordering_pb2
S: Any = ordering_service_pb2
Start = Callable[..., tuple[subprocess.Popen[str], str]]
PROGRAM = [sys.executable, "-m", "ordering_svc"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the command on this test's folder; returns it and its address."""
    started: list[subprocess.Popen[str]] = []

    def begin() -> tuple[subprocess.Popen[str], str]:
        port_file = tmp_path / f"port{len(started)}"
        flags = ["--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--port-file", str(port_file)]
        process = subprocess.Popen([*PROGRAM, *flags], stderr=subprocess.PIPE, text=True)
        started.append(process)
        while not port_file.exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        return process, port_file.read_text().strip()

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def create(address: str, ordering_id: str) -> None:
    document = P.OrderingDocument(base_model_id="m")
    request = S.CreateOrderingRequest(ordering_id=ordering_id, ordering=P.Ordering(document=document))
    with grpc.insecure_channel(address) as channel:
        ordering_service_pb2_grpc.OrderingServiceStub(channel).CreateOrdering(request)


def test_what_was_acknowledged_survives_a_kill(start: Start) -> None:
    process, address = start()
    for number in range(10):
        create(address, f"o{number}")
    process.send_signal(signal.SIGKILL)
    process.wait()

    _, address = start()
    with grpc.insecure_channel(address) as channel:
        listed: Any = ordering_service_pb2_grpc.OrderingServiceStub(channel).ListOrderings(S.ListOrderingsRequest())
    assert [ordering.name for ordering in listed.orderings] == [f"orderings/o{number}" for number in range(10)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_drains_when_told_to_stop(start: Start, number: signal.Signals) -> None:
    process, address = start()
    create(address, "a")
    process.send_signal(number)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert '"event": "draining"' in log
    assert '"event": "stopped"' in log
    assert '"method": "CreateOrdering"' in log


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data-dir", "{file}"], "file"),
        (["--data-dir", "{file}/below"], "file/below"),
        (["--database-url", "sqlite:///{file}"], "file"),
        (["--database-url", "sqlite:////nowhere/at/all"], "/nowhere/at/all"),
        (["--listen", "0.0.0.0:0"], "--insecure"),
        (["--listen", "nonsense"], "nonsense"),
        (["--model-root", "/nowhere"], "/nowhere"),
    ],
)
def test_what_keeps_it_from_starting_is_said_in_one_line(tmp_path: Path, flags: list[str], said: str) -> None:
    (tmp_path / "file").write_text("no database" * 1000)
    given = [flag.format(file=tmp_path / "file") for flag in flags]
    defaults = ["--data-dir", str(tmp_path / "data")] if "--data-dir" not in given else []
    ended = subprocess.run([*PROGRAM, *defaults, "--listen", "127.0.0.1:0", *given], capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert said in ended.stderr.splitlines()[-1]


def test_a_second_server_on_the_same_address_is_refused(start: Start, tmp_path: Path) -> None:
    _, address = start()
    program = [*PROGRAM, "--data-dir", str(tmp_path / "other"), "--listen", address]
    ended = subprocess.run(program, capture_output=True, text=True)
    assert ended.returncode == 2
    assert f"--listen {address}" in ended.stderr
