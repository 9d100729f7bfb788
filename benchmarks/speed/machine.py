"""What the figures were measured on, and whether others used the processor meanwhile."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SHARE_WORTH_A_WARNING = 0.05


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine at one moment."""

    cpu: str
    cores: int
    memory_gib: float
    features: tuple[str, ...]  # instruction sets that quantized products use
    load_average: tuple[float, float, float]


def this_machine() -> Machine:
    """The machine that this runs on."""
    fields = _cpu_fields()
    flags = fields.get("flags", "").split()
    known = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    return Machine(
        cpu=fields.get("model name", platform.processor() or platform.machine()),
        cores=os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        features=tuple(name for name in known if name in flags),
        load_average=os.getloadavg(),
    )


def _cpu_fields() -> dict[str, str]:
    """Of the first processor that Linux lists; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = path.read_text().partition("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


@dataclass(slots=True)
class OthersShare:
    """The share of the processor that processes other than ours used during a measurement."""

    value: float = field(default=0.0)

    @property
    def is_worth_a_warning(self) -> bool:
        """More than a machine that is left alone uses."""
        return self.value > SHARE_WORTH_A_WARNING


@contextmanager
def watching_others() -> Iterator[OthersShare]:
    """Fills the share when the block ends."""
    share = OthersShare()
    began, all_before, ours_before = time.perf_counter(), _busy_seconds(), _our_seconds()
    yield share
    capacity = (time.perf_counter() - began) * (os.cpu_count() or 1)
    others = (_busy_seconds() - all_before) - (_our_seconds() - ours_before)
    share.value = max(0.0, others / capacity)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0))


def _our_seconds() -> float:
    total = 0.0
    process = psutil.Process()
    for member in (process, *process.children(recursive=True)):
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            continue
        # What ended children used is counted to their parent.
        total += times.user + times.system + times.children_user + times.children_system
    return total
