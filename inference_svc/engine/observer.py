"""Who is told of what the engine does, for metrics; names of adapters and requests are never among it."""

from __future__ import annotations

from typing import Protocol


class EngineObserver(Protocol):
    """Called in the engine's thread, so a call must take microseconds; times are in seconds."""

    def stepped(self, num_sequences: int, num_rows: int, seconds: float) -> None:
        """A step is done; the rows are those of its larger pass."""

    def first_token(self, seconds: float) -> None:
        """An answer has its first token, so long after the request arrived."""

    def next_token(self, seconds: float) -> None:
        """An answer has another token, so long after the one before."""

    def ended(self, adapters: str, outcome: str, seconds: float) -> None:
        """An accepted request is over, so long after it arrived.

        Args:
            adapters: `base`, `lora` or `xlora`.
            outcome: why the answer ended (`eos`, `stop`, `max_tokens`, `context`), `cancelled`, or an error's reason.
            seconds: since it arrived.
        """


class NoObserver:
    """Nobody is told."""

    def stepped(self, num_sequences: int, num_rows: int, seconds: float) -> None:
        """Nothing."""

    def first_token(self, seconds: float) -> None:
        """Nothing."""

    def next_token(self, seconds: float) -> None:
        """Nothing."""

    def ended(self, adapters: str, outcome: str, seconds: float) -> None:
        """Nothing."""
