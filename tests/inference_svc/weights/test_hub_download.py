"""Downloads over connections that are cut, of files that arrive damaged, by several at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from inference_svc.weights.errors import (
    HubUnavailable,
    MalformedFile,
)
from inference_svc.weights.hub_fetch import download_adapter
from tests.inference_svc.weights.fake_hub import FakeHub, sha256
from tests.inference_svc.weights.hub_world import MODEL, SHARDS, blobs, fetch, reference, shard


@pytest.mark.parametrize("by_reset", [False, True])
def test_a_cut_connection_is_followed_by_one_that_goes_on(hub: FakeHub, by_reset: bool) -> None:
    hub.cut_by_reset = by_reset
    hub.cuts = [len(MODEL), 7000, 5000, 3000]  # the first is for the header
    assert fetch("org/one").read_bytes() == MODEL
    starts = [int(request.range.removeprefix("bytes=").partition("-")[0]) for request in hub.content_requests()[1:]]
    if not by_reset:  # which takes away what was still on its way
        assert starts == [0, 7000, 12000, 15000]
    assert len(starts) == 4
    assert starts == sorted(starts)


def test_a_download_that_was_given_up_goes_on_at_the_next_start(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts = [len(MODEL), 7000] + [0] * 20
    with pytest.raises(HubUnavailable):
        fetch("org/one")
    assert blobs(tmp_path, "org/one") == {f"{sha256(MODEL)}.incomplete"}
    hub.cuts.clear()
    hub.requests.clear()
    assert fetch("org/one").read_bytes() == MODEL
    assert [request.range for request in hub.content_requests()][-1] == f"bytes=7000-{len(MODEL) - 1}"
    assert blobs(tmp_path, "org/one") == {sha256(MODEL)}


def test_a_link_that_runs_out_is_asked_for_again(hub: FakeHub) -> None:
    hub.link_uses = 1
    hub.cuts = [len(MODEL), 7000, 5000]
    assert fetch("org/one").read_bytes() == MODEL


def test_a_storage_without_ranges_makes_a_cut_download_start_again(hub: FakeHub) -> None:
    hub.knows_ranges = False
    hub.cuts = [len(MODEL), 7000]
    assert fetch("org/one").read_bytes() == MODEL


def test_what_arrives_damaged_is_thrown_away(hub: FakeHub, tmp_path: Path) -> None:
    hub.corrupt = {SHARDS[2]}
    with pytest.raises(MalformedFile, match=f"SHA-256 {sha256(shard(2))}"):
        fetch("org/sharded")
    assert sha256(shard(2)) not in blobs(tmp_path, "org/sharded")
    hub.corrupt = set()
    assert (fetch("org/sharded") / SHARDS[2]).read_bytes() == shard(2)


@pytest.mark.parametrize("left", [b"something else" * 100, b"x" * 30_000])
def test_what_an_earlier_download_left_is_not_believed(hub: FakeHub, tmp_path: Path, left: bytes) -> None:
    folder = tmp_path / "home" / "hub" / "models--org--one" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{sha256(MODEL)}.incomplete").write_bytes(left)
    if len(left) < len(MODEL):
        with pytest.raises(MalformedFile, match="thrown away, start again"):
            fetch("org/one")
    assert fetch("org/one").read_bytes() == MODEL


def test_one_file_that_cannot_be_had_ends_the_download(hub: FakeHub) -> None:
    hub.corrupt = {SHARDS[0]}
    with pytest.raises(MalformedFile):
        fetch("org/sharded")


def test_those_who_want_the_same_at_once_download_it_once(hub: FakeHub) -> None:
    found: list[Path] = []
    ask = lambda: found.append(download_adapter(reference("org/sharded"), lambda _: SHARDS, 1 << 20))  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert len(hub.content_requests()) == len(SHARDS)
