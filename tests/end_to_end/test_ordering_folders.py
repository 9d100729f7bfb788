"""Folders of ordering files go into a real service and come out again, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loramux.cli.__main__ import main
from loramux.client import AsyncClient, Client, FileStatus

GOOD = b'{ "base_model_id":"m",\n "order": ["a"] }\n'
OTHER = b'{"order": ["b", "c"], "base_model_id": "m"}'
BAD = b'{"order": ["a", "a", ""], "layers": {"x": 1}}'


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An ordering service on an empty folder."""
    folder = tmp_path_factory.mktemp("service")
    port_file = folder / "port"
    program = [sys.executable, "-m", "ordering_svc", "--data-dir", str(folder), "--listen", "127.0.0.1:0"]
    with subprocess.Popen([*program, "--port-file", str(port_file), "--log-level", "warning"]) as process:
        while not port_file.exists():
            assert process.poll() is None
            threading.Event().wait(0.02)
        yield port_file.read_text().strip()
        process.terminate()


@pytest.fixture
def run(address: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """Runs `loramux ordering ... --json` and returns exit code and output."""

    def run(*words: str) -> tuple[int, Any]:
        code = main(["ordering", *words, "--json", "--ordering-address", address])
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good files, a bad one, and others that are none of our business."""
    place = tmp_path / "files"
    place.mkdir()
    (place / "alpha.json").write_bytes(GOOD)
    (place / "My_Beta.json").write_bytes(OTHER)
    (place / "bad.json").write_bytes(BAD)
    (place / "notes.txt").write_text("not looked at")
    (place / ".hidden.json").write_text("not looked at")
    return place


def outcomes(reports: Any) -> dict[str, str]:
    return {report["ordering_id"]: report["status"] for report in reports}


def test_a_folder_is_imported_file_by_file_and_exported_byte_for_byte(
    run: Callable[..., tuple[int, Any]], folder: Path, tmp_path: Path
) -> None:
    expected = {"alpha": "imported", "my-beta": "imported", "bad": "refused"}
    code, tried = run("import", str(folder), "--validate-only")
    assert (code, outcomes(tried)) == (1, expected)
    assert run("list") == (0, [])

    code, reports = run("import", str(folder))
    assert (code, outcomes(reports)) == (1, expected)
    bad = next(report for report in reports if report["ordering_id"] == "bad")
    assert {problem["code"] for problem in bad["problems"]} >= {"ORDER_DUPLICATE", "NAME_EMPTY", "ROWS_NOT_CONTIGUOUS"}

    (folder / "bad.json").unlink()
    code, again = run("import", str(folder))
    assert (code, outcomes(again)) == (0, {"alpha": "unchanged", "my-beta": "unchanged"})
    (folder / "alpha.json").write_bytes(OTHER)
    code, taken = run("import", str(folder))
    assert (code, outcomes(taken)) == (1, {"alpha": "refused", "my-beta": "unchanged"})
    code, changed = run("import", str(folder), "--allow-existing")
    assert (code, outcomes(changed)) == (0, {"alpha": "imported", "my-beta": "unchanged"})
    assert [report["revision_number"] for report in changed] == [1, 2]

    out = tmp_path / "new" / "out"
    assert run("export", "--all", str(out), "--validate-only")[0] == 0
    assert not out.exists()
    code, exported = run("export", "--all", str(out))
    assert (code, outcomes(exported)) == (0, {"alpha": "exported", "my-beta": "exported"})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"alpha.json": OTHER, "my-beta.json": OTHER}
    (out / "alpha.json").write_bytes(GOOD)
    code, kept = run("export", "--all", str(out))
    assert (code, outcomes(kept)) == (1, {"alpha": "refused", "my-beta": "unchanged"})
    assert (out / "alpha.json").read_bytes() == GOOD
    code, forced = run("export", "--all", str(out), "--overwrite", "--filter", "kind = unspecified")
    assert (code, outcomes(forced)) == (0, {"alpha": "exported", "my-beta": "unchanged"})
    assert outcomes(run("import", str(out))[1]) == {"alpha": "unchanged", "my-beta": "unchanged"}


def test_a_file_that_cannot_be_an_ordering_is_refused_beside_the_others(address: str, tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("a_b.json", "a-b.json", "9.json", "none.json", "good.json", "big.json")]
    for place in places:
        if place.name != "none.json":
            place.write_bytes(GOOD)
    with places[-1].open("wb") as file:
        file.truncate(16 * 2**20 + 1)
    with Client(ordering=address) as client:
        reports = client.orderings.import_files(places)
        assert [report.reason for report in reports] == [
            "ID_DUPLICATE",
            "ID_DUPLICATE",
            "INVALID_NAME",
            "FILE",
            "",
            "FILE",
        ]
        assert [ordering.id for ordering in client.orderings.list()] == ["good"]


async def test_the_asynchronous_client_does_the_same(address: str, folder: Path, tmp_path: Path) -> None:
    async with AsyncClient(ordering=address) as client:
        reports = await client.orderings.import_files([folder], labels={"team": "a"})
        assert [report.status for report in reports] == [FileStatus.IMPORTED, FileStatus.IMPORTED, FileStatus.REFUSED]
        exported = await client.orderings.export_files(tmp_path / "out", 'labels.team = "a"')
        assert [report.path.read_bytes() for report in exported] == [GOOD, OTHER]
