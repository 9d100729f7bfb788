"""The fake services, for every test of the client and the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loramux.client import Client
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
