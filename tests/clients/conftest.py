"""The fake services, for every test of the client and the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loramux.cli.__main__ import main
from loramux.client import Client
from tests.clients.command import Run
from tests.clients.fakes import FakeServices, serve


@pytest.fixture
def services() -> Iterator[FakeServices]:
    """Both fakes, running."""
    server, fakes = serve()
    yield fakes
    server.stop(grace=None).wait()


@pytest.fixture
def client(services: FakeServices) -> Iterator[Client]:
    """A client of both fakes."""
    with Client(services.address, ordering=services.address) as connected:
        yield connected


@pytest.fixture
def run(
    services: FakeServices, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Run:
    """Runs the command in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.setenv("LORAMUX_ADDRESS", services.address)
    monkeypatch.setenv("LORAMUX_ORDERING_ADDRESS", services.address)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run
