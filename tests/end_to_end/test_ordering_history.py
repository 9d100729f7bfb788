"""The client and the command line against a real ordering service, which is restarted and killed meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from loramux.cli.__main__ import main
from loramux.client import AsyncClient, ChangeType, Client, Difference, LoramuxError, OrderingDocument, errors
from tests.ports import kept_port

DEMO = Path(__file__).resolve().parents[2] / "orderings" / "demo"


class Service:
    """An ordering service on one folder and one port, whatever happens to its process."""

    def __init__(self, folder: Path) -> None:
        self.address = f"127.0.0.1:{kept_port()}"
        self._folder = folder
        self._process = self.start()

    def start(self) -> subprocess.Popen[str]:
        """Starts it and waits until it is ready."""
        ready = self._folder / "ready"
        ready.unlink(missing_ok=True)
        program = [sys.executable, "-m", "ordering_svc", "--data-dir", str(self._folder), "--listen", self.address]
        program += ["--port-file", str(ready), "--drain-seconds", "1", "--log-level", "warning"]
        self._process = subprocess.Popen(program, text=True)
        while not ready.exists():
            assert self._process.poll() is None
            threading.Event().wait(0.02)
        return self._process

    def stop(self, number: signal.Signals) -> None:
        """Ends it."""
        self._process.send_signal(number)
        self._process.wait(timeout=60)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service on an empty folder."""
    started = Service(tmp_path)
    yield started
    started.stop(signal.SIGKILL)


@pytest.fixture
def orderings(service: Service) -> Iterator[Client]:
    """A client of it."""
    with Client(ordering=service.address) as client:
        yield client


def document(*order: str) -> OrderingDocument:
    """A small document with these adapter names."""
    return OrderingDocument(base_model_id="m", order=order)


def test_an_ordering_lives_through_its_whole_history(orderings: Client) -> None:
    api = orderings.orderings
    first = api.import_file(DEMO / "xlora-ordering.json", "mixture", labels={"team": "nlp"}, description="why")
    assert (first.provenance.method, first.tags, first.labels) == ("imported", (), {"team": "nlp"})
    order = first.document.order or ()
    changed = api.update("mixture", document=OrderingDocument("m2", order[:2], first.document.layers), etag=first.etag)
    with pytest.raises(errors.Aborted) as stale:
        api.update("mixture", description="late", etag=first.etag)
    assert stale.value.current_etag == changed.etag

    assert api.tag("mixture@1", "prod").tags == ("prod",)
    assert api.get("mixture@prod").revision_id == first.revision_id
    diff = api.diff("mixture@prod", "mixture")
    assert diff.differences[0] == Difference("order[2]", json.dumps(order[2]), None)
    assert diff.text
    rolled = api.rollback("mixture", "prod")
    assert (rolled.revision_number, rolled.provenance.method) == (3, "rolled_back")
    assert rolled.provenance.source == "orderings/mixture@1"
    assert api.export_file("mixture").json == (DEMO / "xlora-ordering.json").read_bytes()
    assert api.diff("mixture@1", "mixture").same_file
    assert api.untag("mixture", "prod").tags == ()
    with pytest.raises(errors.InvalidArgument):
        api.tag("mixture", "123456")

    api.create("other", document("a"))
    assert [ordering.id for ordering in api.list('labels.team = "nlp"')] == ["mixture"]
    assert [ordering.id for ordering in api.list(order_by="create_time desc")] == ["other", "mixture"]
    with pytest.raises(errors.InvalidArgument):
        api.list("nonsense = 1")
    assert api.delete("mixture", validate_only=True).id == "mixture"
    assert api.get("mixture").delete_time is None
    assert api.delete("mixture").revision_number == 3
    assert api.get("mixture", show_deleted=True).delete_time is not None
    assert [ordering.id for ordering in api.list()] == ["other"]
    assert [ordering.id for ordering in api.list(show_deleted=True)] == ["mixture", "other"]
    with pytest.raises(errors.AlreadyExists):
        api.create("mixture", document("a"))
    assert api.undelete("mixture").revision_number == 3
    with pytest.raises(errors.FailedPrecondition):
        api.purge("mixture")
    api.delete("mixture")
    assert api.purge("mixture") == 3
    assert api.create("mixture", document("a")).revision_number == 1


def test_a_write_that_is_sent_again_happens_once(orderings: Client) -> None:
    api, request_id = orderings.orderings, str(uuid.uuid4())
    api.create("demo", document("a"))
    answers = {api.update("demo", document=document("b"), request_id=request_id).etag for _ in range(3)}
    assert len(answers) == 1
    assert api.get("demo").revision_number == 2
    with pytest.raises(errors.InvalidArgument):
        api.update("demo", document=document("c"), request_id=request_id)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_watch_sees_every_change_once_while_the_service_is_restarted(
    service: Service, orderings: Client, number: signal.Signals
) -> None:
    outages: list[LoramuxError] = []
    watch = orderings.orderings.watch(after=0, on_outage=outages.append)
    assert watch.started() == 0
    for index in range(4):
        orderings.orderings.create(f"o{index}", document("a"))
    before = list(itertools.islice(watch, 2))
    service.stop(number)
    service.start()
    with Client(ordering=service.address) as other:
        for index in range(4, 8):
            other.orderings.create(f"o{index}", document("a"))
    changes = before + list(itertools.islice(watch, 6))
    assert [change.sequence for change in changes] == list(range(1, 9))
    assert [change.id for change in changes] == [f"o{index}" for index in range(8)]
    assert {change.type for change in changes} == {ChangeType.CREATED}
    assert len(outages) == 1
    watch.close()


async def test_an_asynchronous_watch_and_a_writer_outlive_a_restart(service: Service) -> None:
    async with AsyncClient(ordering=service.address) as client, client.orderings.watch() as watch:
        start = await watch.started()
        await client.orderings.create("a", document("a"))
        await asyncio.to_thread(service.stop, signal.SIGTERM)
        restart = asyncio.create_task(asyncio.to_thread(service.start))
        while True:
            try:
                await client.orderings.create("b", document("b"))
                break
            except errors.Unavailable:  # after several tries of its own: a start may take longer on a busy machine
                await asyncio.sleep(0.1)
        await restart
        changes = [await anext(watch) for _ in range(2)]
        assert [(change.sequence - start, change.id) for change in changes] == [(1, "a"), (2, "b")]


def test_the_commands_speak_with_the_real_service(
    service: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAMUX_ORDERING_ADDRESS", service.address)

    def run(*words: str, code: int = 0) -> str:
        assert main(("ordering", *words)) == code, capsys.readouterr()
        return capsys.readouterr().out

    run("import", str(DEMO / "xlora-ordering.json"), "--id", "mixture", "--kind", "xlora", "--label", "team=nlp")
    run("update", "mixture", "--order", "json,pirate", "--description", "Two.")
    assert "mixture@prod is mixture@1" in run("tag", "mixture@1", "prod")
    assert "order[0]" in run("diff", "mixture@prod", code=0)
    run("rollback", "mixture", "prod")
    history = json.loads(run("history", "mixture", "--json"))
    assert [entry["tags"] for entry in history] == [[], [], ["prod"]]
    etag = history[0]["etag"].strip('"')
    run("delete", "mixture", "--etag", etag, "--validate-only")
    run("delete", "mixture", "--etag", "1-000000000000", code=1)
    run("delete", "mixture", "--etag", etag)
    assert run("list") == "no orderings\n"
    assert "mixture" in run("list", "--show-deleted", "--filter", 'labels.team = "nlp"')
    assert json.loads(run("purge", "mixture", "--yes", "--json")) == {"purged_revisions": 3}
