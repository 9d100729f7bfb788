"""`loramux up` as a process of its own, with fake services: order of start and end, signals, deaths, orphans."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from loramux.cli.problems import CommandError
from loramux.cli.processes import progress_in, readable
from loramux.cli.starting_points import free_address, model_folders, ordering_imports
from loramux.client import AdapterKind

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """What the fake services did, one event a line."""
    path = tmp_path / "events"
    path.touch()
    return path


@pytest.fixture
def start(tmp_path: Path, events: Path) -> Iterator[Start]:
    """Starts `loramux up` on free ports, with the fakes in place of the services."""
    for name in ("ordering", "inference"):
        package = tmp_path / "fakes" / f"{name}_svc"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(f"from tests.clients.fake_process import run\nrun({name!r})\n")
    (tmp_path / "model.gguf").touch()
    running: list[subprocess.Popen[str]] = []

    def start(*words: str, behaviour: str = "") -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(tmp_path / "fakes"), *(str(REPOSITORY / root) for root in (".", "clients", "protos"))]
            ),
            "FAKE_EVENTS": str(events),
            "FAKE_BEHAVIOUR": behaviour,
        }
        command = [sys.executable, "-P", "-m", "loramux.cli", "up", "--model", str(tmp_path / "model.gguf")]
        command += ["--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--ordering-listen", "0", *words]
        process = subprocess.Popen(
            command, env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Waits until something is so; fails, and says what, if it never is."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)


def ready(process: subprocess.Popen[str]) -> dict[str, object]:
    """The line that `up --json` prints when both services serve."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    content: dict[str, object] = json.loads(line)
    return content


def story(events: Path) -> list[str]:
    """Events without process ids and arguments."""
    return [" ".join(line.split()[:2]) for line in events.read_text().splitlines()]


def pids(events: Path) -> list[int]:
    """Process ids of the services that were started."""
    return [int(line.split()[2]) for line in events.read_text().splitlines() if line.split()[1] == "started"]


def gone(pid: int) -> bool:
    """True if the process has ended."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_the_ordering_service_comes_first_and_goes_last(start: Start, events: Path, tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    words = ("--batch-invariant", "--quantize", "q8_0", "--xlora-granularity=every:4", "--no-prefix-caching")
    options = ("--ordering-log-level", "debug", "--ordering-busy-timeout-ms=9")
    process = start("--json", "--ordering", "demo@3", "--adapter-root", "adapters", *words, *options)
    said = ready(process)
    assert said["data_dir"] == str(tmp_path / "data")
    assert isinstance(said["model"], dict)
    assert said["model"]["quantization"] == "Q4_1"
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "")
    assert process.returncode == 0
    assert story(events) == [
        "ordering started",
        "ordering serving",
        "inference started",
        "inference serving",
        "inference asked",
        "inference drained",
        "ordering asked",
        "ordering drained",
    ]
    arguments = next(line for line in events.read_text().splitlines() if line.startswith("inference started"))
    assert f"--ordering-address {said['ordering']}" in arguments
    assert arguments.endswith(f"--ordering demo@3 --adapter-root {tmp_path / 'adapters'} {' '.join(words)}")
    ordering_arguments = next(line for line in events.read_text().splitlines() if line.startswith("ordering started"))
    assert ordering_arguments.endswith("--log-level debug --busy-timeout-ms=9")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["logs"]


def test_people_see_addresses_model_and_what_to_try_next(start: Start, tmp_path: Path) -> None:
    process = start("--verbose")
    assert process.stdout is not None
    lines = []
    while "try" not in (line := process.stdout.readline()):
        assert line, process.communicate()
        lines.append(line)
    assert "ready" in lines[0]
    assert any("SmolLM2 (Q4_1" in line for line in lines)
    assert "loramux generate" in line
    process.send_signal(signal.SIGTERM)
    assert "draining" in process.communicate()[1]
    assert process.returncode == 0


def test_people_see_how_far_a_download_is(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    process = start(behaviour="inference:downloading")
    assert process.stdout is not None
    assert "ready" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert "downloading 40% of 2.0 GiB" in process.communicate()[1]


def test_ordering_files_are_imported_before_the_inference_service_starts(
    start: Start, events: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "orderings"
    (folder / "mix" / "one").mkdir(parents=True)
    (folder / "My_Demo.json").write_text('{"order": ["one"], "layers": {}, "base_model_id": "m"}')
    (folder / "mix" / "xlora_config.json").write_text('{"adapters": {"one": "mix/one"}}')
    (folder / "other.json").write_text("[1]")
    process = start("--json", "--import", str(folder))
    ready(process)
    process.send_signal(signal.SIGINT)
    process.communicate()
    lines = events.read_text().splitlines()
    assert f"ordering imported my-demo kind 2 at {folder / 'mix'}" in lines
    arguments = next(line for line in lines if line.startswith("inference started"))
    assert f"--adapter-root {folder} --adapter-root {folder / 'mix'}" in arguments


def test_a_second_interrupt_kills_what_does_not_drain(start: Start, events: Path) -> None:
    process = start("--json", behaviour="inference:stubborn")
    ready(process)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: "inference asked" in story(events), "the inference service is asked to end")
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert all(map(gone, pids(events)))
    assert "ordering drained" not in story(events)


def test_if_one_service_dies_the_other_is_drained_and_its_last_words_are_shown(start: Start, events: Path) -> None:
    process = start(behaviour="inference:dies")
    _, err = process.communicate()
    assert process.returncode == 1
    assert "the inference service ended with exit code 7" in err
    assert "out of memory, says the fake" in err
    assert story(events)[-2:] == ["ordering asked", "ordering drained"]
    assert all(map(gone, pids(events)))


def test_a_service_that_refuses_its_configuration_says_why(start: Start, tmp_path: Path) -> None:
    process = start("--json", behaviour="ordering:misconfigured")
    out, _ = process.communicate()
    assert process.returncode == 1
    error = json.loads(out)["error"]
    assert error["reason"] == "SERVICE_ENDED"
    assert "exit code 2" in error["message"]
    assert "error: the ordering is misconfigured key=1" in error["message"]
    assert "misconfigured" in (tmp_path / "data" / "logs" / "ordering.log").read_text()


@pytest.mark.parametrize("words", [("stray",), ("--port-file", "x"), ("--ordering-address=127.0.0.1:1",)])
def test_what_cannot_be_passed_on_is_wrong_usage(start: Start, events: Path, words: tuple[str, ...]) -> None:
    out, _ = (process := start("--json", *words)).communicate()
    assert process.returncode == 2
    assert words[0].partition("=")[0] in json.loads(out)["error"]["message"]
    assert story(events) == []


def test_help_says_what_the_services_say_of_their_options(start: Start, tmp_path: Path) -> None:
    out, _ = (process := start("--help")).communicate()
    assert process.returncode == 0
    first, inference, ordering = re.split("Any other option|One that begins with --ordering-", out)
    assert "--ordering-listen" in first
    for said, name in ((inference, "inference"), (ordering, "ordering")):
        assert f"help of {name}" in said
    (tmp_path / "fakes" / "inference_svc" / "__main__.py").unlink()
    assert "pip install 'loramux[inference,ordering]'" in start("--help").communicate()[0]


def test_an_interrupt_before_readiness_stops_the_start(start: Start, events: Path) -> None:
    process = start("--json", behaviour="inference:never_ready")
    wait_for(lambda: "inference started" in story(events), "the inference service is started")
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert story(events)[-1] == "ordering drained"
    assert all(map(gone, pids(events)))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child to its parent")
def test_services_do_not_outlive_a_killed_parent(start: Start, events: Path) -> None:
    process = start("--json", behaviour="inference:stubborn")
    ready(process)
    process.kill()
    process.wait()
    wait_for(lambda: all(map(gone, pids(events))), "the services end with their parent")


def test_the_interrupt_of_a_terminal_reaches_no_service_directly(start: Start, events: Path) -> None:
    process = start("--json")
    ready(process)
    groups = {os.getpgid(pid) for pid in pids(events)}
    assert len(groups) == 2
    assert os.getpgid(process.pid) not in groups


def test_a_port_in_use_is_named_with_the_option_that_changes_it(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        out, err = start("--listen", f"127.0.0.1:{port}").communicate()
    assert out == ""
    assert f"127.0.0.1:{port} is in use" in err
    assert "--listen" in err


@pytest.mark.parametrize("word", ["nonsense", "host:", ":1", "127.0.0.1:70000", "127.0.0.1:-1"])
def test_an_address_that_is_none_is_wrong_usage(word: str) -> None:
    with pytest.raises(CommandError, match="--listen") as caught:
        free_address(word, "--listen")
    assert caught.value.exit_code == 2


def test_model_references_name_the_folders_they_read(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert model_folders(str(tmp_path / "m.gguf")) == (tmp_path,)
    assert model_folders(str(tmp_path)) == (tmp_path,)
    assert model_folders("org/model") == ()
    assert model_folders("wheel:email") == (Path(json.__file__).resolve().parents[1] / "email",)
    with pytest.raises(CommandError, match="pip install no-such-wheel"):
        model_folders("wheel:no_such_wheel")


def test_imports_find_adapters_beside_the_file_and_say_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "x.json").write_text('{"order": ["a"], "base_model_id": "m"}')
    (found,) = ordering_imports([tmp_path / "x.json"])
    assert (found.ordering_id, found.adapter_folder, found.kind) == ("x", tmp_path, None)
    (tmp_path / "xlora_config.json").write_text('{"adapters": {"a": "a", "b": "b"}, "base_model_id": "m"}')
    (found,) = ordering_imports([tmp_path])
    assert found.kind is AdapterKind.LORA
    with pytest.raises(CommandError, match=r"nowhere\.json"):
        ordering_imports([tmp_path / "nowhere.json"])
    with pytest.raises(CommandError, match="holds no ordering file"):
        ordering_imports([tmp_path / "a"])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("plain text", "plain text"),
        ('{"event": "ready", "level": "info", "timestamp": "t", "port": 1}', "info: ready port=1"),
        ("[1, 2]", "[1, 2]"),
        ('{"other": 1}', '{"other": 1}'),
    ],
)
def test_log_lines_are_readable_whatever_their_form(line: str, expected: str) -> None:
    assert readable(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"event": "loading weights", "percent": 40, "bytes": 4, "total_bytes": 10}', "loading weights 40%"),
        (
            '{"event": "downloading", "percent": 7, "size": "2.0 GiB", "left": "9 s"}',
            "downloading 7% of 2.0 GiB, 9 s left",
        ),
        ('{"event": "model loaded", "model": "m"}', None),
        ('{"percent": 40}', None),
        ("40%", None),
    ],
)
def test_progress_is_read_from_log_lines(line: str, expected: str | None) -> None:
    assert progress_in(line) == expected
