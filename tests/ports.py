"""Ports for services that are started again at the same address."""

from __future__ import annotations

import contextlib
import random
import socket

# Below what Linux, macOS and Windows give to whoever asks for any port, for instance to a test that runs beside this
# one: of those, a port that was free for a moment is another's a moment later.
NEVER_GIVEN = range(20_000, 30_000)


def kept_port() -> int:
    """A port that nothing listens at, and that stays free while its service is away."""
    while True:
        port = random.SystemRandom().choice(NEVER_GIVEN)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
