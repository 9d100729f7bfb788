"""Both real services as `loramux up` starts them, on the real small model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from loramux.client import AdapterKind, Client

DEMO = Path(__file__).resolve().parents[2] / "orderings" / "demo"


@dataclass(frozen=True, slots=True)
class Running:
    """A running pair of services."""

    inference: str
    ordering: str
    pids: dict[str, int]
    process: subprocess.Popen[str]
    adapters: Path  # a second folder that adapters may be loaded from


@contextmanager
def services(gguf: Path, data_dir: Path, *extra: str) -> Iterator[Running]:
    """`loramux up --batch-invariant` on free ports, until the block ends."""
    program = [sys.executable, "-m", "loramux.cli", "up", "--json", "--batch-invariant", "--model", str(gguf)]
    program += ["--base-model-id", "HuggingFaceTB/SmolLM2-135M-Instruct", "--data-dir", str(data_dir)]
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
