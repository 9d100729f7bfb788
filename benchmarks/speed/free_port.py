"""A free port, for servers that cannot choose one and say which."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port of the loopback address that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
