"""What the log says of a download, by a clock that the test moves."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from inference_svc.weights.download_progress import DownloadProgress, DownloadStoppedError

MIB = 1 << 20


class Clock:
    """Seconds, moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_log_says_every_few_seconds_how_far_it_is_and_how_long_it_will_take() -> None:
    clock = Clock()
    with capture_logs() as lines:
        progress = DownloadProgress("org/name", 100 * MIB, 20 * MIB, clock)
        for _ in range(10):
            clock.now += 1.0
            progress.add(2 * MIB)
        progress.finish()
    assert [line["event"] for line in lines] == ["downloading", "downloading", "downloading", "downloaded"]
    assert lines[0] == {
        "event": "downloading",
        "log_level": "info",
        "name": "org/name",
        "size": "100.0 MiB",
        "here_already": "20.0 MiB",
    }
    assert lines[2] == {
        "event": "downloading",
        "log_level": "info",
        "name": "org/name",
        "percent": 40,
        "done": "40.0 MiB",
        "size": "100.0 MiB",
        "rate": "2.0 MiB/s",
        "left": "30 s",
    }
    assert lines[3]["seconds"] == 10.0


def test_a_download_that_stands_still_does_not_say_when_it_will_end() -> None:
    clock = Clock()
    with capture_logs() as lines:
        progress = DownloadProgress("org/name", 100, 40, clock)
        clock.now += 60
        progress.add(0)
    assert (lines[1]["percent"], lines[1]["left"]) == (40, "unknown")


def test_a_download_that_is_stopped_ends_whoever_adds_to_it() -> None:
    progress = DownloadProgress("org/name", 100, 0)
    progress.add(1)
    progress.stop()
    with pytest.raises(DownloadStoppedError):
        progress.add(1)
