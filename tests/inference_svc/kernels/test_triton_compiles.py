"""The kernels compile for GPUs, none of which has to be there: the interpreter accepts what the compiler does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_every_kernel_compiles(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-m",
        "tests.inference_svc.kernels.compile_triton",
        "90",
    ]  # 8.0 by hand: it takes as long again
    compiled = subprocess.run(
        command, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert compiled.returncode == 0, compiled.stderr
    assert len(compiled.stdout.splitlines()) == 13
