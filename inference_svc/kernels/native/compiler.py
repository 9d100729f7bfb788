"""Builds the native kernels with the machine's own compiler, once, and keeps them in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = (FOLDER / "program.cpp", *sorted(FOLDER.glob("*.h")))
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-ffp-contract=off", "-pthread", "-fPIC", "-shared")


class NativeUnavailable(Exception):
    """The native kernels cannot be built or loaded here; the message says why."""


def load_code() -> ctypes.CDLL:
    """The compiled kernels; compiled now if this machine has not compiled this source yet (a few seconds).

    Raises:
        NativeUnavailable: there is no compiler, or it fails, or the result cannot be loaded.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise NativeUnavailable("no C++ compiler (g++ or clang++) is installed")
    path = _cache_folder() / f"native-{_build_key(compiler)}.so"
    try:
        if not path.exists():
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(f"{path} cannot be written or loaded: {error}") from error


def _compile(compiler: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may compile at once: each writes its own file, and the last rename wins with equal content.
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        built = subprocess.run(
            [compiler, *FLAGS, "-o", draft, str(SOURCES[0])], capture_output=True, text=True, timeout=300, check=False
        )
        if built.returncode != 0:
            last = (built.stderr.strip().splitlines() or ["no message"])[-1]
            raise NativeUnavailable(f"{compiler} cannot compile them: {last}")
        Path(draft).replace(path)
    except subprocess.TimeoutExpired as error:
        raise NativeUnavailable(f"{compiler} did not finish in {error.timeout:g} seconds") from error
    finally:
        Path(draft).unlink(missing_ok=True)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "loramux"


def _build_key(compiler: str) -> str:
    """Names source, flags, compiler and processor: code for one machine must not be loaded on another."""
    content = (
        b"".join(source.read_bytes() for source in SOURCES)
        + "\0".join((*FLAGS, compiler, platform.machine(), _processor())).encode()
    )
    return hashlib.sha256(content).hexdigest()[:16]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    lines = info.read_text(errors="replace").splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
