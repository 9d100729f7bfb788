"""Conversations to text, by the chat template in the model file.

A template is a program by whoever made the model. jinja2's sandbox keeps it from reading files, but not from running
for ever or filling the memory: `{% for a in range(99999) %}{% for b in range(99999) %}`, `"a" * 10**11`, a string
doubled sixty times. Counting loop turns misses the last two, and Python cannot stop a thread inside such an operation.
So a template runs in a process of its own, with limits on its memory and on the time that it computes, which end it.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from inference_svc.tokenization.errors import ChatTemplateError

MAX_CHARS = 1 << 20
TIME_LIMIT_S = 5.0
WAIT_LIMIT_S = 60.0  # for a process that starts or computes beside others on a busy machine

_WORKER = Path(__file__).with_name("chat_template_worker.py")


class ChatTurn(Protocol):
    """One message of a conversation."""

    @property
    def role(self) -> str:
        """`system`, `user`, `assistant`, or what else the template knows."""

    @property
    def content(self) -> str:
        """The text."""


class ChatTemplate:
    """A template and the process that renders it, started by the first use and ended with this object."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        max_chars: int = MAX_CHARS,
        time_limit_s: float = TIME_LIMIT_S,
    ) -> None:
        """Take a template.

        Args:
            source: jinja2, as in `tokenizer.chat_template`.
            special_tokens: what templates read beside the messages, such as `bos_token`.
            max_chars: most characters of a rendered conversation.
            time_limit_s: longest time that one rendering may compute, in seconds of one processor.
        """
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._max_chars = max_chars
        self._time_limit_s = time_limit_s
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def render(self, turns: Sequence[ChatTurn]) -> str:
        """The conversation as text, ending where the assistant's answer begins.

        Raises:
            ChatTemplateError: the template refuses the conversation, breaks, or exceeds its limits.
        """
        request = {
            "messages": [{"role": turn.role, "content": turn.content} for turn in turns],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **self._special_tokens,
        }
        with self._lock:
            try:
                if self._worker is None:
                    self._worker = _Worker(self.source, self._max_chars, self._time_limit_s)
                answer = self._worker.ask(json.dumps(request).encode())
            except _WorkerLostError as error:
                self._worker = None
                raise ChatTemplateError(f"The chat template {error}.") from error
        if "error" in answer:
            raise ChatTemplateError(f"The chat template refuses this conversation: {answer['error']}")
        return answer["text"]


class NoChatTemplate:
    """In place of a template where a model has none: refuses every conversation."""

    def __init__(self, reason: str = "The model has no chat template.") -> None:
        self._reason = reason

    def render(self, _turns: Sequence[ChatTurn]) -> str:
        """Refuse.

        Raises:
            ChatTemplateError: always.
        """
        raise ChatTemplateError(f"{self._reason} Give the prompt as text or token ids.")


class _WorkerLostError(Exception):
    """The process is gone."""


class _Worker:
    """A process that renders one template; it ends when the connection closes, so also when this process dies."""

    def __init__(self, source: str, max_chars: int, time_limit_s: float) -> None:
        self._time_limit_s = time_limit_s
        ours, theirs = socket.socketpair()
        with theirs:
            # -I: neither this project nor the environment's PYTHONPATH is importable. Its own session: a Ctrl-C in the
            # terminal is for the server, which may still have conversations to render while it drains.
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_WORKER), str(theirs.fileno()), str(max_chars), str(time_limit_s)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())
        self._end = weakref.finalize(self, _end, self._process, self._connection)
        # A character is at most 12 bytes of JSON (an escaped surrogate pair).
        self._max_bytes = 12 * max_chars + 4096
        try:
            # Starting takes a moment that is not the template's.
            if not self._connection.poll(WAIT_LIMIT_S):
                raise EOFError
            self._connection.recv_bytes()
            self._connection.send_bytes(source.encode("utf-8", "surrogatepass"))
        except (EOFError, OSError) as error:
            self._end()
            raise _WorkerLostError("has no process: it did not start") from error

    def ask(self, request: bytes) -> dict[str, str]:
        """Send a request and wait for its answer; a worker that does not answer in time is gone."""
        try:
            self._connection.send_bytes(request)
            if not self._connection.poll(WAIT_LIMIT_S):
                self._end()
                raise _WorkerLostError(f"did not finish within {WAIT_LIMIT_S:g} s, and was stopped")
            answer: dict[str, str] = json.loads(self._connection.recv_bytes(self._max_bytes))
        except (EOFError, OSError) as error:
            self._end()
            if self._process.returncode == -signal.SIGPROF:
                raise _WorkerLostError(f"did not finish within {self._time_limit_s:g} s, and was stopped") from error
            raise _WorkerLostError("ended its process") from error
        return answer


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    process.kill()
    process.wait()
