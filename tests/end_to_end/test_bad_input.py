"""Wrong input through real servers: a typed error that names the thing, before the first token, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from loramux.client import (
    BASE,
    Aborted,
    AdapterKind,
    Client,
    FailedPrecondition,
    InvalidArgument,
    LoramuxError,
    Message,
    NotFound,
    OrderingDocument,
    PermissionDenied,
    XLoRA,
)
from tests.end_to_end.conftest import DEMO, Running

HELLO: list[Message] = [{"role": "user", "content": "Hello!"}]
Case = tuple[Callable[[Client], object], type[LoramuxError], str, str]

CASES: dict[str, Case] = {
    "an unknown adapter": (
        lambda c: c.generate(HELLO, adapters="unheard-of"),
        NotFound,
        "ADAPTER_NOT_FOUND",
        "unheard-of",
    ),
    "one unknown adapter of a sum": (
        lambda c: c.generate(HELLO, adapters={"pirate": 1.0, "unheard-of": 1.0}),
        NotFound,
        "ADAPTER_NOT_FOUND",
        "unheard-of",
    ),
    "an X-LoRA as a LoRA": (
        lambda c: c.generate(HELLO, adapters="mixture"),
        FailedPrecondition,
        "ADAPTER_WRONG_KIND",
        "mixture",
    ),
    "a LoRA as an X-LoRA": (
        lambda c: c.generate(HELLO, adapters=XLoRA("pirate")),
        FailedPrecondition,
        "ADAPTER_WRONG_KIND",
        "pirate",
    ),
    "a prompt longer than the context": (
        lambda c: c.generate([5] * 9000, adapters=BASE),
        InvalidArgument,
        "PROMPT_TOO_LONG",
        "9000 tokens and the context holds 8192",
    ),
    "a token id outside the vocabulary": (
        lambda c: c.generate([49152], adapters=BASE),
        InvalidArgument,
        "INVALID_REQUEST",
        "49152",
    ),
    "greedy and truncated at once": (
        lambda c: c.generate(HELLO, temperature=0.0, top_p=0.5),
        InvalidArgument,
        "INVALID_REQUEST",
        "top_p",
    ),
    "more least than most tokens": (
        lambda c: c.generate(HELLO, min_tokens=9, max_tokens=4),
        InvalidArgument,
        "INVALID_REQUEST",
        "min_tokens 9",
    ),
    "an adapter outside the allowed roots": (
        lambda c: c.adapters.load("outside", "/etc"),
        PermissionDenied,
        "PATH_NOT_ALLOWED",
        "/etc",
    ),
    "a path that climbs out of the roots": (
        lambda c: c.adapters.load("outside", "xlora/../../../pirate"),
        PermissionDenied,
        "PATH_NOT_ALLOWED",
        "..",
    ),
    "an adapter that is not there": (
        lambda c: c.adapters.load("missing", "unheard-of"),
        NotFound,
        "SOURCE_NOT_FOUND",
        "unheard-of",
    ),
    "an unknown ordering": (
        lambda c: c.apply_ordering("unheard-of"),
        NotFound,
        "ORDERING_NOT_FOUND",
        "unheard-of",
    ),
    "an adapter in use as the default": (
        lambda c: (c.adapters.activate("json"), c.adapters.unload("json")),
        FailedPrecondition,
        "ADAPTER_IN_USE",
        "json",
    ),
}


@pytest.mark.parametrize(("call", "error", "reason", "named"), CASES.values(), ids=CASES.keys())
def test_it_is_refused_with_a_typed_error_that_names_it(
    client: Client, call: Callable[[Client], object], error: type[LoramuxError], reason: str, named: str
) -> None:
    try:
        with pytest.raises(error) as raised:
            call(client)
        assert raised.value.reason == reason
        assert named in raised.value.message
    finally:
        client.adapters.activate(BASE)
    # Still serving.
    assert client.generate(HELLO, adapters="pirate", temperature=0.0, max_tokens=2).token_ids


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 1.5),
        ("top_k", 0),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 3.0),
        ("max_tokens", 0),
        ("logprobs", 101),
        ("stop", ["ok", ""]),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_field(client: Client, option: str, value: object) -> None:
    with pytest.raises(InvalidArgument) as raised:
        client.generate(HELLO, **{option: value})  # type: ignore[arg-type]
    assert any(option in violation.field for violation in raised.value.violations)


def test_a_stale_etag_is_refused_with_the_current_one(client: Client) -> None:
    document = OrderingDocument.from_json((DEMO / "lora-ordering.json").read_bytes())
    first = client.orderings.create("etags", document, kind=AdapterKind.LORA)
    second = client.orderings.update("etags", description="changed", etag=first.etag)
    with pytest.raises(Aborted) as raised:
        client.orderings.update("etags", description="lost?", etag=first.etag)
    assert raised.value.current_etag == second.etag
    assert client.orderings.get("etags").description == "changed"


@pytest.mark.parametrize("damage", ["truncated", "header lies", "wrong shape", "wrong base"])
def test_a_broken_adapter_is_refused_and_the_resident_one_of_that_name_stays(
    running: Running, client: Client, damage: str
) -> None:
    folder = running.adapters / damage.replace(" ", "-")
    shutil.copytree(DEMO / "xlora" / "pirate", folder)
    _break(folder, damage)
    before = client.adapters.get("pirate")
    with pytest.raises((InvalidArgument, FailedPrecondition)) as raised:
        client.adapters.load("pirate", folder.name, replace=True)
    assert raised.value.reason in ("ADAPTER_MALFORMED", "ADAPTER_UNFIT")
    assert client.adapters.get("pirate").digest == before.digest


def _break(folder: Path, damage: str) -> None:
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    data = weights.read_bytes()
    if damage == "truncated":
        weights.write_bytes(data[: len(data) // 2])
    elif damage == "header lies":
        weights.write_bytes((1 << 60).to_bytes(8, "little") + data[8:])
    elif damage == "wrong shape":
        content = json.loads(config.read_text())
        config.write_text(json.dumps({**content, "r": 5}))
    else:
        content = json.loads(config.read_text())
        config.write_text(json.dumps({**content, "base_model_name_or_path": "someone/another-model"}))
