"""Both real services as `loramux up` starts them, on the real small model."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from loramux.client import AdapterKind, Client

DEMO = Path(__file__).resolve().parents[2] / "orderings" / "demo"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True)
class Running:
    """A running pair of services."""

    inference: str
    ordering: str
    pids: dict[str, int]
    process: subprocess.Popen[str]
    adapters: Path  # a second folder that adapters may be loaded from


@contextmanager
def services(gguf: Path, data_dir: Path, *extra: str, base_model_id: str = SMOLLM2) -> Iterator[Running]:
    """`loramux up --batch-invariant` on free ports, until the block ends."""
    program = [sys.executable, "-m", "loramux.cli", "up", "--json", "--batch-invariant", "--model", str(gguf)]
    program += ["--base-model-id", base_model_id, "--data-dir", str(data_dir)]
    adapters = data_dir / "adapters"
    adapters.mkdir()
    program += ["--adapter-root", str(DEMO), "--adapter-root", str(adapters)]
    program += ["--listen", "127.0.0.1:0", "--ordering-listen", "127.0.0.1:0", *extra]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            ready = json.loads(line)
            yield Running(ready["inference"], ready["ordering"], ready["pids"], process, adapters)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


@dataclass(frozen=True, slots=True)
class InferenceAlone:
    """An inference service that is ready."""

    address: str
    metrics: str | None  # where they are served
    log: Path  # a line of JSON for each event


@contextmanager
def inference_alone(gguf: Path, data_dir: Path, *extra: str, base_model_id: str = SMOLLM2) -> Iterator[InferenceAlone]:
    """The inference service without an ordering service of its own, on a free port, until the block ends."""
    log = data_dir / "log"
    program = [sys.executable, "-m", "inference_svc", "--model", str(gguf), "--base-model-id", base_model_id]
    program += ["--listen", "127.0.0.1:0", "--data-dir", str(data_dir / "inference"), "--log-format", "json"]
    program += ["--batch-invariant", *extra]
    with log.open("w") as stderr, subprocess.Popen(program, stderr=stderr) as process:
        try:
            while not (ready := re.search(r'^.*"event": "ready".*\n', log.read_text(), re.MULTILINE)):
                assert process.poll() is None, log.read_text()
                time.sleep(0.02)
            told = json.loads(ready[0])
            yield InferenceAlone(told["address"], told["metrics"], log)
        finally:
            process.terminate()
            process.wait(timeout=60)


def store_demo_orderings(client: Client) -> None:
    """Both demo orderings, as `styles` and `mixture`."""
    client.orderings.import_file(DEMO / "lora-ordering.json", "styles", allow_existing=True, kind=AdapterKind.LORA)
    client.orderings.import_file(
        DEMO / "xlora-ordering.json", "mixture", allow_existing=True, kind=AdapterKind.XLORA, adapter_model_id="xlora"
    )


@pytest.fixture(scope="session")
def running(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Services with both demo orderings applied and nothing active."""
    with services(smollm2_gguf, tmp_path_factory.mktemp("data")) as started:
        with Client(started.inference, ordering=started.ordering) as client:
            store_demo_orderings(client)
            client.apply_ordering("styles", activate=False)
            client.apply_ordering("mixture", activate=False)
        yield started


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    """A client of the shared services."""
    with Client(running.inference, ordering=running.ordering) as connected:
        yield connected
