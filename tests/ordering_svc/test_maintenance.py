"""The commands that look after the database, as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ordering_svc", *arguments], capture_output=True, text=True)


def test_a_database_is_made_copied_examined_and_restored(tmp_path: Path) -> None:
    data, copy = str(tmp_path / "data"), str(tmp_path / "copy")
    assert run("migrate", "--data-dir", data).returncode == 0
    assert json.loads(run("backup", copy, "--data-dir", data, "--json").stdout)["size_bytes"] > 0
    assert "is" in run("restore", copy, "--data-dir", data).stdout
    examined = run("doctor", "--data-dir", data, "--json")
    assert examined.returncode == 0
    assert all(finding["is_sound"] for finding in json.loads(examined.stdout))


def test_an_unsound_database_and_a_missing_one_have_exit_codes_of_their_own(tmp_path: Path) -> None:
    data = tmp_path / "data"
    run("migrate", "--data-dir", str(data))
    missing = run("doctor", "--data-dir", str(tmp_path / "none"))
    assert missing.returncode == 2
    assert missing.stderr.splitlines() == [
        f"loramux-ordering: {tmp_path}/none/orderings.sqlite3: there is no such database"
    ]
    file = data / "orderings.sqlite3"
    content = bytearray(file.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    file.write_bytes(content)
    assert run("doctor", "--data-dir", str(data)).returncode in (1, 2)
