"""Who may read what, what a hub's refusals mean, and what is done without it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from inference_svc.weights.errors import (
    FileMissing,
    HubUnavailable,
    NoRoom,
    WeightsError,
)
from inference_svc.weights.hub_errors import refusal
from tests.inference_svc.weights.fake_hub import FakeHub, commit
from tests.inference_svc.weights.hub_world import MODEL, OLD_MODEL, SHARDS, fetch
from tests.inference_svc.weights.repositories import checkpoint, safetensors_bytes


def test_no_token_leaves_the_hub_for_its_storage(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.accounts = {"hf_mine": set()}
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.cuts = [len(MODEL), 7000]
    fetch("org/one")
    assert {request.token for request in hub.requests if not request.is_storage} == {"Bearer hf_mine"}
    assert {request.token for request in hub.requests if request.is_storage} == {""}


def test_a_token_is_found_in_the_file_of_the_login(hub: FakeHub, tmp_path: Path) -> None:
    hub.accounts = {"hf_mine": {"org/one"}}
    hub.private = {"org/one"}
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("hf_mine\n")
    assert fetch("org/one").read_bytes() == MODEL


def test_a_gated_repository_is_read_by_who_has_access(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.accounts = {"hf_mine": {"org/one"}}
    hub.gated = {"org/one"}
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert fetch("org/one").read_bytes() == MODEL


@pytest.mark.parametrize("repository", ["org/one", "org/sharded"])
@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "is gated: accept its conditions at http.*/org/(one|sharded), then set HF_TOKEN"),
        ("hf_mine", "is gated, and the account of the token in HF_TOKEN has no access yet: ask for it at http"),
        ("hf_old", "does not accept the token in HF_TOKEN: it is wrong or has expired"),
    ],
)
def test_a_gated_repository_says_what_to_do(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, repository: str, token: str | None, message: str
) -> None:
    hub.accounts = {"hf_mine": set()}
    hub.gated = {repository}
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubUnavailable, match=message):
        fetch(repository)


@pytest.mark.parametrize("repository", ["org/one", "org/unknown"])
@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "has no such repository, or it is private: check the name, or set HF_TOKEN"),
        ("hf_mine", "has no such repository, or does not show it to the account of the token in HF_TOKEN"),
    ],
)
def test_what_is_missing_and_what_is_private_look_alike_from_outside(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, repository: str, token: str | None, message: str
) -> None:
    hub.accounts = {"hf_mine": set()}
    hub.private = {"org/one"}
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(FileMissing, match=message):
        fetch(repository)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("org/one@v9", "org/one has no revision 'v9'"),
        ("org/one@v9:model.gguf", "org/one has no revision 'v9'"),
        ("org/one:other.gguf", r"the repository has no file 'other\.gguf'; it has model\.gguf \(19\.\d KiB\)"),
        ("org/one:README.md", r"'README\.md' is not a \.gguf file; it has model\.gguf"),
        ("org/one:Q2_K", r"no \.gguf file is called 'Q2_K'; it has model\.gguf"),
    ],
)
def test_a_revision_or_file_that_is_not_there_is_missing(hub: FakeHub, text: str, message: str) -> None:
    with pytest.raises(FileMissing, match=message) as caught:
        fetch(text)
    assert caught.value.path.startswith("org/one")


def test_a_repository_that_is_switched_off_says_where_to_look(hub: FakeHub) -> None:
    hub.disabled = {"org/one"}
    with pytest.raises(HubUnavailable, match=r"has disabled access to org/one: see http.*/org/one"):
        fetch("org/one")


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (500, {}, r"is out of order \(HTTP 500\): try again later, and the cache in .* has no copy"),
        (503, {}, "HTTP 503"),
        (429, {"Retry-After": "17"}, "too many requests from here: try again in 17 seconds, or set HF_TOKEN"),
        (429, {}, "too many requests from here: try again later"),
        (403, {"X-Error-Message": "Forbidden: no"}, "asks for a login: set HF_TOKEN .*Forbidden: no"),
    ],
)
def test_a_hub_that_refuses_says_so_and_what_to_do(
    hub: FakeHub, status: int, headers: dict[str, str], message: str
) -> None:
    hub.failing, hub.failing_headers = status, headers
    with pytest.raises(HubUnavailable, match=message):
        fetch("org/one")


def test_a_full_disk_is_no_fault_of_the_hub() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert isinstance(refusal("org/one", "org/one", "http://hub", full), NoRoom)


@pytest.fixture(params=["offline", "out of order", "too many requests"])
def away(request: pytest.FixtureRequest, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Takes the hub away."""

    def take_away() -> None:
        hub.requests.clear()
        hub.failing = {"out of order": 503, "too many requests": 429}.get(request.param, 0)
        if request.param == "offline":
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    return take_away


@pytest.mark.parametrize(
    "text",
    ["org/one", "org/one@v1", f"org/one@{commit({'model.gguf': OLD_MODEL})}", "org/split", "org/plain", "org/sharded"],
)
def test_what_is_in_the_cache_is_used_when_the_hub_is_away(hub: FakeHub, away: Callable[[], None], text: str) -> None:
    path = fetch(text)
    away()
    assert fetch(text) == path
    assert len(hub.requests) == (1 if hub.failing else 0)


def test_the_only_file_in_the_cache_needs_no_name_when_the_hub_is_away(hub: FakeHub, away: Callable[[], None]) -> None:
    path = fetch("org/many:Q8_0")
    away()
    assert fetch("org/many") == path


def test_what_the_cache_lacks_is_unavailable_when_the_hub_is_away(hub: FakeHub, away: Callable[[], None]) -> None:
    fetch("org/many:Q8_0")
    away()
    for text in ("org/one", "org/many:Q4_K_M", "org/many@v1", f"org/many@{'0' * 40}"):
        with pytest.raises(HubUnavailable, match=r"has no copy|the copy in the cache|is called"):
            fetch(text)


def test_a_download_that_was_cut_leaves_the_last_whole_one_for_bad_days(hub: FakeHub, away: Callable[[], None]) -> None:
    whole = fetch("org/sharded")
    hub.move("org/sharded", "main", {**checkpoint(SHARDS), SHARDS[1]: safetensors_bytes(50)})
    hub.cuts = [7000] + [0] * 20
    with pytest.raises(HubUnavailable):
        fetch("org/sharded")
    away()
    assert fetch("org/sharded") == whole


def test_a_refusal_is_not_answered_from_the_cache(hub: FakeHub) -> None:
    fetch("org/one")
    hub.private = {"org/one"}
    with pytest.raises(FileMissing, match="private"):
        fetch("org/one")


def test_every_error_is_one_of_ours(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for endpoint in ("not a url", "http://127.0.0.1:1", "http://"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        with pytest.raises(WeightsError):
            fetch("org/one")
