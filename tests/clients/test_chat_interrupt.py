"""Ctrl-C in `loramux chat` stops the answer, not the program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.clients.fakes import FakeServices


def test_an_interrupt_stops_the_answer_and_the_conversation_goes_on(services: FakeServices) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "loramux.cli", "chat", "--address", services.address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # A suite that runs in the background of a shell inherits an ignored SIGINT; a terminal's programs do not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"forever\n")
    process.stdin.flush()
    assert process.stdout.read(7) == b"on and "
    process.send_signal(signal.SIGINT)
    assert services.inference.ended.wait(30)
    out, err = process.communicate(b"hello you\n/quit\n", timeout=60)
    assert process.returncode == 0
    assert b"stopped" in err
    assert b"you hello" in out
    roles = [message.role for message in services.inference.requests[1].prompt.chat.messages]
    assert roles == ["user", "assistant", "user"]
