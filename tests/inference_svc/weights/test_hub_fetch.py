"""Models from a hub: which files, of which commit, and what is looked at before they are downloaded."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from inference_svc.config import load_config
from inference_svc.memory_plan import room_for_adapters
from inference_svc.models.base_model import OpenedModel, open_base_model
from inference_svc.tokenization.errors import TokenizationError
from inference_svc.tokenization.source import tokenizer_of
from inference_svc.tokenization.tokenizer import ModelTokenizer
from inference_svc.weights.errors import (
    FileMissing,
    MalformedFile,
    NoRoom,
    NotEnoughMemory,
    TooLarge,
    UnsupportedFile,
)
from inference_svc.weights.hub_fetch import download_adapter
from inference_svc.weights.opening import ModelSource
from inference_svc.weights.source import SourceFormat
from tests.inference_svc.weights.fake_hub import FakeHub, commit, sha256
from tests.inference_svc.weights.hub_world import MODEL, OLD_MODEL, PARTS, SHARDS, blobs, fetch, names, reference, shard
from tests.inference_svc.weights.repositories import Checks, checkpoint, gguf_bytes, safetensors_bytes
from tests.inference_svc.weights.tiny_folder import TOKENS, TinyModel, write_tiny_model


def test_a_repository_stands_for_its_only_gguf_file(hub: FakeHub) -> None:
    path = fetch("org/one")
    assert path.name == "model.gguf"
    assert path.read_bytes() == MODEL
    assert names(path.parent) == {"model.gguf"}


@pytest.mark.parametrize("revision", ["v1", commit({"model.gguf": OLD_MODEL})])
def test_a_branch_a_tag_or_a_commit_is_what_is_downloaded(hub: FakeHub, revision: str) -> None:
    assert fetch(f"org/one@{revision}").read_bytes() == OLD_MODEL


def test_a_file_is_named_by_its_path_or_by_the_tag_at_the_end_of_its_name(hub: FakeHub) -> None:
    assert fetch("org/many@main:sub/b-Q8_0.gguf").read_bytes() == OLD_MODEL
    assert fetch("org/many:q4_k_m").read_bytes() == MODEL


@pytest.mark.parametrize("text", ["org/split", "org/split:model-00002-of-00003.gguf", "org/split:model"])
def test_all_parts_of_a_split_file_come_and_the_first_is_opened(hub: FakeHub, text: str) -> None:
    path = fetch(text)
    assert path.name == "model-00001-of-00003.gguf"
    assert {part.name: part.read_bytes() for part in path.parent.iterdir()} == PARTS


@pytest.mark.parametrize(("repository", "weights"), [("org/plain", ["model.safetensors"]), ("org/sharded", SHARDS)])
def test_of_a_checkpoint_only_what_is_read_is_downloaded(hub: FakeHub, repository: str, weights: list[str]) -> None:
    folder = fetch(repository)
    side = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    index = {"model.safetensors.index.json"} if len(weights) > 1 else set()
    assert names(folder) == side | index | set(weights)
    assert [(folder / file).read_bytes() for file in weights] == [shard(n) for n in range(len(weights))]


def test_a_second_start_asks_which_commit_it_is_and_downloads_nothing(hub: FakeHub) -> None:
    first = fetch("org/sharded")
    hub.requests.clear()
    assert fetch("org/sharded") == first
    assert [request.path.partition("?")[0] for request in hub.requests] == ["/api/models/org/sharded"]


def test_another_commit_takes_from_the_cache_what_it_shares_with_the_last_one(hub: FakeHub) -> None:
    before = checkpoint(SHARDS)
    fetch("org/sharded")
    hub.move("org/sharded", "main", {**before, SHARDS[1]: safetensors_bytes(50)})
    hub.requests.clear()
    folder = fetch("org/sharded")
    assert (folder / SHARDS[1]).read_bytes() == safetensors_bytes(50)
    assert (folder / SHARDS[0]).read_bytes() == before[SHARDS[0]]
    asked = [request.path.partition("?")[0][1:] for request in hub.content_requests()]
    assert {content: asked.count(content) for content in asked} == {  # once for the header, of all; then what is new
        sha256(shard(0)): 1,
        sha256(safetensors_bytes(50)): 2,
        sha256(shard(2)): 1,
    }


def test_all_files_are_of_one_commit_though_the_branch_moves_meanwhile(hub: FakeHub) -> None:
    before = checkpoint(SHARDS)
    after = {name: content[::-1] for name, content in before.items()}
    hub.moves = [("org/sharded", "main", after)]
    folder = fetch("org/sharded")
    assert folder.name == commit(before)
    assert all((folder / file).read_bytes() == before[file] for file in names(folder))


def test_a_gguf_header_is_checked_before_the_file_is_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    refused = Checks(UnsupportedFile("org/one:model.gguf", "not this one"))
    with pytest.raises(UnsupportedFile, match="not this one"):
        fetch("org/one", refused)
    (source,) = refused.asked
    assert (str(source.path), source.format) == ("org/one:model.gguf", SourceFormat.GGUF)
    assert source.metadata["general.architecture"] == "llama"
    assert source.entries["weight"].shape == (5000,)
    assert blobs(tmp_path, "org/one") == set()


def test_of_a_split_file_all_headers_are_looked_at(hub: FakeHub) -> None:
    checks = Checks()
    fetch("org/split", checks)
    (source,) = checks.asked
    assert str(source.path) == "org/split:model-00001-of-00003.gguf"
    assert set(source.entries) == {"weight.1", "weight.2", "weight.3"}


def test_of_a_checkpoint_config_and_headers_are_looked_at_before_it_is_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    refused = Checks(UnsupportedFile("org/sharded:config.json", "not this one"))
    with pytest.raises(UnsupportedFile, match="not this one"):
        fetch("org/sharded", refused)
    (source,) = refused.asked
    assert source.format is SourceFormat.HUGGING_FACE
    assert source.metadata == {"model_type": "llama"}
    assert {name: entry.shape for name, entry in source.entries.items()} == {f"tensor.{n}": (5000,) for n in range(3)}
    assert not any((source.path / name).exists() for name in SHARDS)
    assert (source.path / "tokenizer.json").exists()
    assert len(hub.content_requests()) == 3


def test_a_check_may_read_a_tensor_of_what_is_not_downloaded(hub: FakeHub) -> None:
    checks = Checks()
    fetch("org/sharded", checks)
    values = checks.asked[0].tensor("tensor.1").dequantize()
    assert values.numpy().tobytes() == shard(1)[-20_000:]


def test_a_tensor_of_a_type_that_is_not_supported_is_refused_by_the_header(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories["org/odd"] = {"main": {**checkpoint(), "model.safetensors": safetensors_bytes(0, dtype="I16")}}
    with pytest.raises(UnsupportedFile, match="tensor 'weight' is of dtype I16"):
        fetch("org/odd")
    assert sha256(safetensors_bytes(0, dtype="I16")) not in blobs(tmp_path, "org/odd")


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 2000, struct.pack("<Q", 1 << 24) + b"{" * 2000])
def test_a_file_that_is_no_safetensors_is_refused_by_its_first_bytes(hub: FakeHub, content: bytes) -> None:
    hub.repositories["org/odd"] = {"main": {**checkpoint(), "model.safetensors": content}}
    with pytest.raises(MalformedFile, match="malformed safetensors") as caught:
        fetch("org/odd")
    assert caught.value.path == "org/odd:model.safetensors"


def test_no_more_of_a_file_than_its_header_needs_is_asked_for(hub: FakeHub) -> None:
    large = gguf_bytes("gpt2", extra=3 << 20, size=1 << 20)
    hub.repositories["org/large"] = {"main": {"model.gguf": large}}
    checks = Checks(UnsupportedFile("it", "refused"))
    with pytest.raises(UnsupportedFile):
        fetch("org/large", checks)
    assert checks.asked[0].metadata["general.architecture"] == "gpt2"
    ranges = [request.range for request in hub.content_requests()]
    assert ranges[0] == f"bytes=0-{(1 << 20) - 1}"
    assert all(int(wanted.partition("-")[2]) < len(large) - 1 for wanted in ranges)


def test_a_storage_that_knows_no_ranges_gives_headers_too(hub: FakeHub) -> None:
    hub.knows_ranges = False
    hub.repositories["org/large"] = {"main": {"model.gguf": gguf_bytes("gpt2", extra=3 << 20)}}
    checks = Checks()
    fetch("org/large", checks)
    assert checks.asked[0].metadata["general.architecture"] == "gpt2"


@pytest.mark.parametrize("content", [b"GGUF" + b"\xff" * 4000, b"lmgg" + b"\0" * 4000, b"no model" * 400])
def test_a_file_that_is_no_gguf_is_refused_by_its_first_bytes(hub: FakeHub, tmp_path: Path, content: bytes) -> None:
    hub.repositories["org/odd"] = {"main": {"model.gguf": content}}
    with pytest.raises((MalformedFile, UnsupportedFile)) as caught:
        fetch("org/odd")
    assert caught.value.path == "org/odd:model.gguf"
    assert blobs(tmp_path, "org/odd") == set()


def test_a_header_that_claims_to_be_endless_is_not_read_to_its_end(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_svc.weights.hub.MAX_HEADER_BYTES", 2 << 20)
    hub.repositories["org/large"] = {"main": {"model.gguf": gguf_bytes(extra=3 << 20)}}
    with pytest.raises(MalformedFile, match=r"more than 2\.0 MiB"):
        fetch("org/large")


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_broken_config_is_malformed(hub: FakeHub, content: bytes) -> None:
    hub.repositories["org/odd"] = {"main": {**checkpoint(), "config.json": content}}
    with pytest.raises(MalformedFile):
        fetch("org/odd")


def test_a_config_that_is_not_small_is_not_downloaded(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_svc.weights.hub.MAX_SMALL_BYTES", 100)
    hub.repositories["org/odd"] = {"main": {**checkpoint(), "config.json": b"{}" + b" " * 200}}
    with pytest.raises(TooLarge, match="202 B, more than the 100 B allowed"):
        fetch("org/odd")


def opened(text: str, before_download: Callable[[OpenedModel], object] | None = None) -> OpenedModel:
    """As the service opens a model."""
    return open_base_model(
        text,
        base_model_id=None,
        device="cpu",
        kernels="reference",
        batch_invariant=False,
        before_download=before_download,
    )


@pytest.fixture
def tiny(hub: FakeHub, tmp_path: Path) -> TinyModel:
    """A small model that runs, as `org/tiny` and as `org/tiny-gguf`."""
    model = write_tiny_model(tmp_path / "tiny")
    hub.repositories["org/tiny-gguf"] = {"main": {"tiny.gguf": model.gguf.read_bytes()}}
    hub.repositories["org/tiny"] = {"main": {path.name: path.read_bytes() for path in model.folder.iterdir()}}
    return model


@pytest.mark.parametrize("text", ["org/tiny", "org/tiny-gguf"])
def test_the_service_loads_what_comes_from_a_hub(hub: FakeHub, tiny: TinyModel, text: str) -> None:
    model = opened(text).load()
    assert model.shape.base_model_id == text
    assert model.quantization == "F32"
    assert model.tokenizer.encode("The sea") == list(map(TOKENS.index, ["Th", *"eĠsea"]))


@pytest.mark.parametrize("text", ["org/tiny", "org/tiny-gguf"])
def test_a_tokenizer_is_built_once_whether_the_model_has_to_be_downloaded_or_not(
    hub: FakeHub, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    built: list[ModelTokenizer] = []

    def build(source: ModelSource, vocab_size: int) -> ModelTokenizer:
        built.append(tokenizer_of(source, vocab_size))
        return built[-1]

    monkeypatch.setattr("inference_svc.models.base_model.tokenizer_of", build)
    for count in (1, 2):
        assert opened(text).load().tokenizer is built[-1]
        assert len(built) == count


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (
            "org/tiny-gguf",
            b"llama",
            b"mamba",
            r"architecture 'mamba' \(`general\.architecture`\) is not supported: .*llama",
        ),
        ("org/tiny-gguf", b"blk.1.ffn_up", b"blk.1.ffn_xx", r"tensor 'blk\.1\.ffn_up\.weight' is missing"),
        ("org/tiny-gguf", b"gpt2", b"what", "what"),
        ("org/tiny", b'"llama"', b'"mamba"', r"architecture 'mamba' \(`model_type`\) is not supported: .*llama"),
        ("org/tiny", b"1.mlp.up_proj", b"1.mlp.xx_proj", r"tensor 'model\.layers\.1\.mlp\.up_proj\.weight' is missing"),
        ("org/tiny", b'"hidden_size": 64', b'"hidden_size": 32', "has the shape"),
        ("org/tiny", b'"torch_dtype"', b'"quantization_config"', "quantization_config"),
        ("org/tiny", b'"BPE"', b'"ABC"', "tokenizer"),
    ],
)
def test_the_service_refuses_what_it_could_not_run_before_it_downloads_it(
    hub: FakeHub, tiny: TinyModel, tmp_path: Path, text: str, old: bytes, new: bytes, message: str
) -> None:
    files = hub.repositories[text]["main"]
    hub.move(text, "main", {name: content.replace(old, new) for name, content in files.items()})
    with pytest.raises((UnsupportedFile, MalformedFile, TokenizationError), match=message) as caught:
        opened(text)
    assert "\n" not in str(caught.value)
    assert not any(
        sha256(content) in blobs(tmp_path, text)
        for content in hub.repositories[text]["main"].values()
        if len(content) > 100_000
    )


def test_a_model_that_does_not_fit_into_memory_is_not_downloaded(hub: FakeHub, tiny: TinyModel, tmp_path: Path) -> None:
    config = load_config({"max_adapter_bytes": 1 << 60}, {})
    with pytest.raises(NotEnoughMemory, match=r"org/tiny-gguf:tiny\.gguf: it does not fit: .* GB \(weights\) \+ "):
        opened("org/tiny-gguf", before_download=lambda model: room_for_adapters(config, model))
    assert blobs(tmp_path, "org/tiny-gguf") == set()


def test_several_models_are_listed_with_sizes_and_one_is_suggested(hub: FakeHub) -> None:
    with pytest.raises(
        FileMissing,
        match=r"2 models in GGUF, name one, for instance org/many:a-Q4_K_M\.gguf; "
        r"it has a-Q4_K_M\.gguf \(19\.\d KiB\), sub/b-Q8_0\.gguf \(19\.\d KiB\)",
    ):
        fetch("org/many")
    assert hub.content_requests() == []


def test_a_disk_without_room_is_named_with_the_arithmetic(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 30_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - free, free))
    with pytest.raises(NoRoom, match=r"needs 58\.8 KiB and 29\.3 KiB are free in .*/hub: make room for 29\.5 KiB more"):
        fetch("org/sharded")
    assert sha256(shard(0)) not in blobs(tmp_path, "org/sharded")
    free = 70_000
    fetch("org/sharded")


def test_an_adapter_larger_than_the_limit_is_not_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    files = ["config.json", *SHARDS]
    with pytest.raises(TooLarge, match=r"its 4 files have 58\.9 KiB, more than the 48\.8 KiB that adapters may take"):
        download_adapter(reference("org/sharded"), lambda _: files, 50_000)
    assert blobs(tmp_path, "org/sharded") == set()
    assert names(download_adapter(reference("org/sharded"), lambda _: files, 70_000)) == set(files)
