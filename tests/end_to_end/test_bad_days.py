"""Services that go away, drain or cannot start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from loramux.client import BASE, Client, Generation, Message, Unavailable, XLoRA
from tests.end_to_end.conftest import DEMO, inference_alone, services, store_demo_orderings

CHAT: list[Message] = [{"role": "user", "content": "Tell me about pearl divers."}]


def test_without_the_ordering_service_what_was_applied_keeps_working_and_a_restart_uses_the_copy(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    with services(smollm2_gguf, tmp_path) as running, Client(running.inference, ordering=running.ordering) as client:
        store_demo_orderings(client)
        client.apply_ordering("styles", activate=False)
        applied = client.apply_ordering("mixture").ordering
        os.kill(running.pids["ordering"], signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable) as raised:
                client.apply_ordering("styles")
            assert raised.value.reason == "ORDERING_SERVICE_UNAVAILABLE"
            answer = client.generate(CHAT, temperature=0.0, max_tokens=8)
            assert [adapter.ordering for adapter in answer.adapters] == [applied]
        finally:
            os.kill(running.pids["ordering"], signal.SIGCONT)

    # Started again with the ordering service away: the copy on disk is used, loudly.
    away = ["--adapter-root", str(DEMO), "--ordering-address", "127.0.0.1:1", "--ordering", "mixture"]
    with inference_alone(smollm2_gguf, tmp_path, *away) as restarted, Client(restarted.address) as client:
        again = client.generate(CHAT, temperature=0.0, max_tokens=8)
    assert again.token_ids == answer.token_ids
    log = restarted.log.read_text().splitlines()
    assert any("copy" in line and "warning" in line for line in log), log


def test_sigterm_lets_running_streams_finish(smollm2_gguf: Path, tmp_path: Path) -> None:
    with services(smollm2_gguf, tmp_path) as running, Client(running.inference) as client:
        answers: list[Generation] = []
        started = threading.Event()

        def read() -> None:
            stream = client.stream(CHAT, adapters=BASE, temperature=0.0, max_tokens=40, ignore_eos=True)
            for _ in stream:
                started.set()
            answers.append(stream.generation())

        reader = threading.Thread(target=read)
        reader.start()
        assert started.wait(60)
        running.process.send_signal(signal.SIGTERM)
        reader.join(60)
        assert [answer.usage.completion_tokens for answer in answers] == [40]
        assert running.process.wait(60) == 0


def test_orderings_given_at_the_start_are_fetched_by_revision_and_applied(smollm2_gguf: Path, tmp_path: Path) -> None:
    extra = ["--import", str(DEMO), "--ordering", "lora-ordering", "--ordering", "xlora-ordering@1"]
    with services(smollm2_gguf, tmp_path, *extra) as running, Client(running.inference) as client:
        names = {adapter.name for adapter in client.adapters.list()}
        assert names == {"pirate", "json", "verse", "capitals", "xlora-ordering"}
        assert client.adapters.active().selection == XLoRA("xlora-ordering")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "/nowhere/model.gguf"], "/nowhere/model.gguf"),
        (["--ordering", "unheard-of", "--ordering-address", "127.0.0.1:1"], "unheard-of"),
        (["--listen", "0.0.0.0:0"], "0.0.0.0"),
        (["--device", "cuda:77"], "cuda"),
        (["--kernels", "magic"], "magic"),
    ],
)
def test_a_service_that_cannot_start_says_why_in_one_line_and_exits_with_2(
    arguments: list[str], named: str, tmp_path: Path
) -> None:
    program = [
        sys.executable,
        "-m",
        "inference_svc",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        str(tmp_path),
        *arguments,
    ]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr
