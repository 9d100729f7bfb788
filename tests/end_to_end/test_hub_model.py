"""A service whose model comes from a hub: interrupted while it downloads, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loramux.client import Client
from tests.inference_svc.weights.fake_hub import FakeHub, serve

HALF = 50 << 20


@contextmanager
def started(hub: FakeHub, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The inference service, while it starts."""
    program = [sys.executable, "-m", "inference_svc", "--model", "org/smol", "--listen", "127.0.0.1:0"]
    program += ["--port-file", str(folder / "port"), "--data-dir", str(folder)]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_TOKEN": ""}
    with subprocess.Popen(
        program,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A suite in the background of a shell inherits an ignored SIGINT; a terminal's programs do not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        yield process
        process.kill()


def test_an_interrupt_ends_a_download_at_once_and_the_next_start_goes_on_with_it(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    hub = FakeHub({"org/smol": {"main": {"smol.gguf": smollm2_gguf.read_bytes()}}}, stall_after=HALF)
    with serve(hub):
        with started(hub, tmp_path) as process:
            assert hub.stalled.wait(120)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == -signal.SIGINT
        hub.stall_after = None
        with started(hub, tmp_path) as process:
            assert process.stderr is not None
            log = []
            for line in process.stderr:
                log.append(line)
                if '"ready"' in line:
                    break
            with Client((tmp_path / "port").read_text().strip()) as client:
                assert client.model().base_model_id == "org/smol"
                assert client.generate("The sea", max_tokens=2, temperature=0.0).usage.completion_tokens == 2
    begins = int(hub.content_requests()[-1].range.removeprefix("bytes=").partition("-")[0])
    assert 0 < begins <= HALF
    assert any('"downloading"' in line and "here_already" in line for line in log), log
