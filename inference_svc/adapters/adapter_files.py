"""Tensor files of adapters: size cap, digest over what was read, and errors that speak of adapters."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from torch import Tensor

from inference_svc.errors import AdapterMalformed, AdapterUnsupported, LimitReached, SourceChanged, SourceNotFound
from inference_svc.weights.errors import FileChanged, FileMissing, UnsupportedFile, WeightsError
from inference_svc.weights.safetensors_header import HeaderLimits, read_tensors

# A thousand layers, and the whole base model that PEFT saves beside them.
HEADER_LIMITS = HeaderLimits(max_bytes=1 << 20, max_tensors=8192)


class ContentDigest:
    """SHA-256 over files and facts, each framed by name and length, so that no two contents collide by joining."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add(self, name: str, content: bytes) -> None:
        """Add a fact that is not a file."""
        self._sha.update(f"{len(name)}:{name}:{len(content)}:".encode())
        self._sha.update(content)

    def add_hash(self, name: str, sha: hashlib._Hash) -> None:
        """Add a file under a name that does not depend on where it lies, by the SHA-256 of what was read from it."""
        self.add(name, sha.digest())

    def hexdigest(self) -> str:
        """64 hex digits."""
        return self._sha.hexdigest()


def file_state(path: Path) -> tuple[int, int, int] | None:
    """Identity, size and change time of a file, None if there is none: equal before and after means unchanged."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_adapter_tensors(path: Path, name: str, max_bytes: int, sha: hashlib._Hash) -> dict[str, Tensor]:
    """All tensors of a safetensors file; `name` is how messages call it, `sha` takes in its bytes as they are read.

    Raises:
        SourceNotFound: there is no such file.
        LimitReached: it is larger than `max_bytes`.
        AdapterMalformed: it is broken, or a tensor is not of floating point or not finite.
        SourceChanged: it was written to while it was read: what looks broken may only be half written.
        AdapterUnsupported: a type of tensor that is not supported.
    """
    before = file_state(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise SourceNotFound(f"{name} is missing", file=name) from error
    if size > max_bytes:
        raise LimitReached(
            f"{name} has {size} bytes, the limit for adapters is {max_bytes}", file=name, limit=str(max_bytes)
        )
    try:
        return read_tensors(path, sha.update, HEADER_LIMITS)
    except FileMissing as error:
        raise SourceNotFound(f"{name}: {_said(error)}", file=name) from error
    except UnsupportedFile as error:
        raise AdapterUnsupported(f"{name}: {_said(error)}", file=name) from error
    except FileChanged as error:
        raise SourceChanged(f"{name}: {_said(error)}; load it again", file=name) from error
    except WeightsError as error:
        if file_state(path) != before:
            raise SourceChanged(f"{name} was written to while it was read; load it again", file=name) from error
        raise AdapterMalformed(f"{name}: {_said(error)}", file=name) from error


def tensor_problem(key: str, tensor: Tensor, dimensions: int) -> str | None:
    """What is wrong with a tensor whatever the model: its type, its rank as a tensor, or its values."""
    if not tensor.is_floating_point():
        return f"`{key}` is of type {tensor.dtype}, expected floating point"
    if tensor.dim() != dimensions:
        return f"`{key}` has shape {list(tensor.shape)}, expected {dimensions} dimensions"
    if not all_finite(tensor):
        return f"`{key}` holds NaN or infinity"
    return None


def all_finite(tensor: Tensor) -> bool:
    """No element is NaN or infinite."""
    numbers = tensor.float()
    # A sum is many times faster, and never finite if an element is not; that of large numbers may overflow.
    return math.isfinite(float(numbers.sum())) or bool(numbers.isfinite().all())


def _said(error: WeightsError) -> str:
    """The message without the path, which is this machine's own affair."""
    return str(error).removeprefix(f"{error.path}: ")
