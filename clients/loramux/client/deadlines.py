"""How long unary calls may take."""

from __future__ import annotations

from dataclasses import dataclass

from loramux.client.calls import AnyCall, Value


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds for a call, and for one that loads files or asks the hub."""

    unary_s: float = 30.0
    slow_s: float = 600.0

    def of(self, call: AnyCall[Value]) -> float:
        """The deadline of a call, in seconds."""
        return self.slow_s if call.slow else self.unary_s
