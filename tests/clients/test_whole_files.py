"""A file is written wholly or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from loramux.client.whole_files import write_whole


def test_a_file_is_replaced_and_keeps_its_permissions_and_links(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    write_whole(target, b"1")
    target.chmod(0o640)
    link.symlink_to(target)
    write_whole(link, b"2")
    assert (target.read_bytes(), target.stat().st_mode & 0o777, link.is_symlink()) == (b"2", 0o640, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "target.json"]


def test_what_was_there_stays_if_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target.json"
    target.write_bytes(b"1")

    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_whole(target, b"2")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("target.json", b"1")]


def test_a_pipe_is_written_to_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, b"1")
    reader.join()
    assert read == [b"1"]
    assert pipe.is_fifo()
