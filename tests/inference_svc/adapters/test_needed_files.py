"""Which files of a repository are downloaded for an adapter, and what is refused before any is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from inference_svc.adapters.needed_files import needed_files
from inference_svc.errors import AdapterMalformed, AdapterUnsupported, InferenceError, SourceNotFound
from inference_svc.weights.listing import Listing
from tests.inference_svc.weights.repositories import MadeUpListing

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LORA = json.dumps({"peft_type": "LORA", "r": 8})


def peft_xlora(count: int) -> str:
    return json.dumps({"peft_type": "XLORA", "adapters": {f"name{index}": "path" for index in range(count)}})


def listing(folder: Path, files: Sequence[str], config: str) -> Listing:
    texts = {name: text for name, text in ((CONFIG, config), ("xlora_config.json", "{}")) if name in files}
    return MadeUpListing(folder, dict.fromkeys(files, 1), texts)


def adapters(*folders: str) -> list[str]:
    return [f"{folder}/{file}" for folder in folders for file in (CONFIG, WEIGHTS)]


OTHERS = ["README.md", "tokenizer.json", "training_args.bin", "checkpoint-500/optimizer.pt", "runs/events"]


@pytest.mark.parametrize(
    ("files", "config", "folders", "expected"),
    [
        ([CONFIG, WEIGHTS, *adapters("checkpoint-500")], LORA, [], [CONFIG, WEIGHTS]),
        ([CONFIG, WEIGHTS], LORA, ["name-of-the-order"], [CONFIG, WEIGHTS]),
        (
            [CONFIG, WEIGHTS, *adapters("a", "b", "c")],
            LORA,
            ["a", "b"],
            [CONFIG, f"a/{CONFIG}", f"b/{CONFIG}", WEIGHTS, f"a/{WEIGHTS}", f"b/{WEIGHTS}"],
        ),
        (adapters("a", "b", "c"), "", ["c", "a"], [f"c/{CONFIG}", f"a/{CONFIG}", f"c/{WEIGHTS}", f"a/{WEIGHTS}"]),
        (
            [CONFIG, WEIGHTS, *adapters("0", "1", "2")],
            peft_xlora(2),
            [],
            [CONFIG, f"0/{CONFIG}", f"1/{CONFIG}", WEIGHTS, f"0/{WEIGHTS}", f"1/{WEIGHTS}"],
        ),
        (
            ["xlora_config.json", "xlora_classifier.safetensors", *adapters("adapter_1", "adapter_10", "old")],
            "",
            ["adapter_10", "adapter_1"],
            [
                "xlora_config.json",
                f"adapter_10/{CONFIG}",
                f"adapter_1/{CONFIG}",
                "xlora_classifier.safetensors",
                f"adapter_10/{WEIGHTS}",
                f"adapter_1/{WEIGHTS}",
            ],
        ),
    ],
    ids=["lora", "lora-of-an-order-of-one", "lora-and-folders", "folders", "peft-xlora", "xlora"],
)
def test_what_is_read_is_needed_and_nothing_else(
    tmp_path: Path, files: list[str], config: str, folders: list[str], expected: list[str]
) -> None:
    assert needed_files(listing(tmp_path, [*files, *OTHERS], config), folders) == expected


@pytest.mark.parametrize(
    ("files", "config", "folders", "kind", "message"),
    [
        ([], "", [], SourceNotFound, r"holds no adapter: no adapter_config\.json .* it has README\.md"),
        (adapters("a", "b"), "", [], SourceNotFound, "holds no adapter.*; its sub-folders with an adapter.*: a, b"),
        (adapters("a", "b"), "", ["a", "x"], SourceNotFound, "no adapter in a sub-folder `x`; its sub-folders.*: a, b"),
        ([CONFIG, WEIGHTS], LORA, ["a", "x"], SourceNotFound, "no adapter in a sub-folder `a`"),
        ([CONFIG], LORA, [], SourceNotFound, r"org/name has no adapter_model\.safetensors"),
        ([CONFIG, "adapter_model.bin"], LORA, [], AdapterUnsupported, r"adapter_model\.bin is a pickle"),
        ([CONFIG, WEIGHTS, *adapters("0")], peft_xlora(2), [], SourceNotFound, "no adapter in a sub-folder `1`"),
        (["xlora_config.json"], "", [], SourceNotFound, r"has no xlora_classifier\.safetensors"),
        (
            ["xlora_config.json", "xlora_classifier.safetensors", *adapters("a")],
            "",
            ["a", "b"],
            SourceNotFound,
            "no adapter in a sub-folder `b`; its sub-folders.*: a",
        ),
        ([CONFIG, WEIGHTS], "{", [], AdapterMalformed, "not valid JSON"),
        (["xlora_config.json", CONFIG], peft_xlora(2), [], AdapterMalformed, "has both"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_downloaded(
    tmp_path: Path, files: list[str], config: str, folders: list[str], kind: type[InferenceError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        needed_files(listing(tmp_path, [*files, *OTHERS], config), folders)
