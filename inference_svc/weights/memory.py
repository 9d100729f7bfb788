"""How much memory there is, and whether what is to be loaded fits: asked before anything big is read.

On the CPU it is the least of what the kernel calls available (`MemAvailable`) and of what each control group around the
process has left of its limit, versions 1 and 2. Page cache counts as free there too: it is given up when needed.
Source: Documentation/filesystems/proc.rst and admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst of Linux.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from inference_svc.weights.errors import NotEnoughMemory

_NO_LIMIT = 1 << 60  # what version 1 says where there is none is 2^63 less a page


def available_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that can still be taken on the device; None where the system does not tell.

    `root` is where /proc and /sys are.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    known = [left for left in (_available_to_all(root), *_left_in_groups(root)) if left is not None]
    return min(known, default=None)


def give_back_memory() -> None:
    """Let the system have what was freed and is kept for later: glibc keeps hundreds of megabytes after a load."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have no such function, nor the habit
    if trim is not None:
        trim(0)


def check_memory(path: str, needs: Mapping[str, int], available: int | None, advice: str) -> None:
    """Refuse what cannot fit; where the system tells nothing, nothing is refused.

    Args:
        path: the model that messages name.
        needs: bytes, by what they are for.
        available: bytes.
        advice: what to do.

    Raises:
        NotEnoughMemory: the message has the arithmetic.
    """
    total = sum(needs.values())
    if available is None or total <= available:
        return
    terms = " + ".join(f"{_gigabytes(count)} ({what})" for what, count in needs.items())
    raise NotEnoughMemory(
        path, f"it does not fit: {terms} = {_gigabytes(total)}, and {_gigabytes(available)} are available; {advice}"
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _available_to_all(root: Path) -> int | None:
    value = _field(root / "proc/meminfo", "MemAvailable:")
    return None if value is None else value * 1024


def _left_in_groups(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, controllers_and_path = line.partition(":")
        controllers, _, path = controllers_and_path.partition(":")
        if not path:
            continue
        if not controllers:
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            mount, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        # In a container the path may be that of the host: groups that are not there are passed over.
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount) and (left := _left(folder, *names)) is not None:
                yield left


def _left(folder: Path, limit_name: str, usage_name: str, prefix: str) -> int | None:
    limit, usage = _number(folder / limit_name), _number(folder / usage_name)
    if limit is None or usage is None or limit >= _NO_LIMIT:
        return None
    cache = sum(_field(folder / "memory.stat", f"{prefix}{name}") or 0 for name in ("active_file", "inactive_file"))
    return max(0, limit - max(0, usage - cache))


def _number(path: Path) -> int | None:
    """None if there is no such file, or it says `max`."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    values = (words[1] for line in lines if len(words := line.split()) > 1 and words[0] == name)
    text = next(values, "")
    return int(text) if text.isdecimal() else None
