"""Folders of safetensors as Hugging Face writes them, and what is said of those that do not hold together."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from inference_svc.weights.errors import (
    FileChanged,
    FileMissing,
    MalformedFile,
    UnsupportedFile,
    WeightsError,
)
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.opening import open_model
from inference_svc.weights.safetensors_model import SafetensorsModel, read_index
from inference_svc.weights.source import SourceFormat, TensorSource
from tests.inference_svc.weights.tiny_llama import write_tiny_llama_gguf

INDEX = "model.safetensors.index.json"
TENSORS = {
    "model.embed_tokens.weight": torch.arange(24, dtype=torch.float32).reshape(6, 4) / 7,
    "model.layers.0.mlp.up_proj.weight": torch.arange(32, dtype=torch.bfloat16).reshape(8, 4) / 3,
    "model.layers.0.mlp.down_proj.weight": torch.arange(32, dtype=torch.float16).reshape(4, 8) / 3,
    "model.norm.weight": torch.arange(4, dtype=torch.bfloat16),
}


def write_config(folder: Path, **config: object) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    write_config(tmp_path)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Four shards of a tensor each, and their index, by huggingface_hub."""
    save_torch_state_dict(TENSORS, tmp_path, max_shard_size=50)
    write_config(tmp_path)
    assert len([*tmp_path.glob("model-0000?-of-00004.safetensors")]) == 4
    return tmp_path


def shard_of(folder: Path, name: str) -> Path:
    return folder / str(json.loads((folder / INDEX).read_text())["weight_map"][name])


def assert_holds_the_tensors(model: TensorSource) -> None:
    assert model.entries.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        entry, tensor = model.entries[name], model.tensor(name)
        assert entry.shape == tuple(expected.shape)
        assert (
            entry.quantization.name == {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[str(expected.dtype)[6:]]
        )
        assert entry.nbytes == tensor.nbytes == expected.nbytes
        assert tensor.dequantize().equal(expected.float().reshape(tensor.shape))


def test_a_single_file_is_read(single: Path) -> None:
    write_config(single, hidden_size=4)
    model = open_model(single)
    assert (model.path, model.format) == (single, SourceFormat.HUGGING_FACE)
    assert model.metadata == {"model_type": "llama", "hidden_size": 4}
    assert_holds_the_tensors(model)
    assert_holds_the_tensors(open_model(single / "model.safetensors"))


def test_a_file_of_another_name_can_be_named(single: Path) -> None:
    (single / "model.safetensors").rename(single / "other.safetensors")
    assert_holds_the_tensors(open_model(single / "other.safetensors"))
    with pytest.raises(
        FileMissing, match=r"neither model\.safetensors nor .*it holds config\.json, other\.safetensors"
    ):
        open_model(single)


def test_shards_are_one_model_and_any_of_them_stands_for_it(sharded: Path) -> None:
    assert_holds_the_tensors(open_model(sharded))
    for shard in sharded.glob("*.safetensors"):
        assert_holds_the_tensors(open_model(shard))


def test_a_single_file_wins_over_an_index_that_does_not_name_it(sharded: Path) -> None:
    save_file({"alone": torch.ones(1)}, sharded / "model.safetensors")
    assert [*open_model(sharded).entries] == ["alone"]


def test_files_of_a_hubs_cache_are_links_and_read_all_the_same(
    sharded: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    snapshot = tmp_path_factory.mktemp("snapshot")
    for path in sharded.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert_holds_the_tensors(open_model(snapshot))


def test_missing_shards_are_named(sharded: Path) -> None:
    shards = sorted(sharded.glob("*.safetensors"))
    shards[0].unlink()
    shards[2].unlink()
    with pytest.raises(
        FileMissing, match=rf"2 of the 4 files that it names are missing: {shards[0].name}, {shards[2].name}"
    ):
        open_model(sharded)


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    shard = shard_of(sharded, "model.norm.weight")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(MalformedFile, match=rf"{shard.name}: malformed safetensors: .*truncated"):
        open_model(sharded)


def test_a_tensor_that_the_index_places_wrongly_is_named(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.ghost.weight"] = shard_of(sharded, "model.norm.weight").name
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(MalformedFile, match=r"'model\.ghost\.weight' is not in model-.* as it says$"):
        open_model(sharded)


def test_shards_that_are_swapped_are_noticed(sharded: Path) -> None:
    left, right = shard_of(sharded, "model.norm.weight"), shard_of(sharded, "model.embed_tokens.weight")
    left.rename(sharded / "aside")
    right.rename(left)
    (sharded / "aside").rename(right)
    with pytest.raises(MalformedFile, match="as it says, nor are 1 others where they should be"):
        open_model(sharded)


def test_a_tensor_that_stands_in_two_shards_is_named_with_both(sharded: Path) -> None:
    first, second = shard_of(sharded, "model.norm.weight"), shard_of(sharded, "model.embed_tokens.weight")
    save_file(load_file(first) | load_file(second), second)
    with pytest.raises(MalformedFile, match=r"'model\.norm\.weight' stands in .*safetensors too"):
        open_model(sharded)


def test_a_tensor_beyond_the_index_is_part_of_the_model(sharded: Path) -> None:
    shard = shard_of(sharded, "model.norm.weight")
    save_file(load_file(shard) | {"more": torch.ones(1)}, shard)
    assert open_model(sharded).tensor("more").dequantize().tolist() == [[1.0]]


def test_a_shard_that_changes_later_is_named(sharded: Path) -> None:
    model = open_model(sharded)
    shard = shard_of(sharded, "model.norm.weight")
    shard.write_bytes(b"")
    with pytest.raises(FileChanged, match=rf"{shard.name}: tensor 'model\.norm\.weight' is cut off"):
        model.tensor("model.norm.weight")
    assert model.tensor("model.embed_tokens.weight").shape == (6, 4)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "float64"])
def test_tensors_of_other_types_are_unsupported_by_name(single: Path, dtype: str) -> None:
    save_file({"model.norm.weight": torch.ones(4).to(getattr(torch, dtype))}, single / "model.safetensors")
    with pytest.raises(UnsupportedFile, match=r"'model\.norm\.weight' is of dtype \w+: F32, F16, BF16 are supported"):
        open_model(single)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes"])
def test_weights_quantized_by_other_libraries_are_unsupported_by_name(single: Path, method: str) -> None:
    write_config(single, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(
        UnsupportedFile, match=f"quantized by '{method}': take the model as GGUF, or in F32, F16 or BF16"
    ):
        open_model(single)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "not a JSON object"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
    ],
)
def test_a_config_that_is_no_object_is_malformed(single: Path, content: bytes, message: str) -> None:
    (single / "config.json").write_bytes(content)
    with pytest.raises(MalformedFile, match=rf"config\.json: it .*{message}"):
        open_model(single)


def test_a_folder_without_a_config_says_so(single: Path) -> None:
    (single / "config.json").unlink()
    with pytest.raises(FileMissing, match=r"config\.json: cannot be read: No such file"):
        open_model(single)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "weight_map is None"),
        ({}, "weight_map is {}"),
        (["a"], "weight_map is"),
        ({"a": 1}, "'a' is said to be in 1"),
        ({"a": "../model.safetensors"}, "not in a file beside it"),
        ({"a": "/etc/model.safetensors"}, "not in a file beside it"),
        ({"a": "sub\\model.safetensors"}, "not in a file beside it"),
        ({"a": "pytorch_model.bin"}, "not in a file beside it"),
        ({str(number): f"{number}.safetensors" for number in range(1001)}, "names 1001 files, more than the 1000"),
    ],
)
def test_an_index_that_makes_no_sense_is_malformed(tmp_path: Path, weight_map: object, message: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(MalformedFile, match=message) as caught:
        read_index(tmp_path / INDEX)
    assert len(str(caught.value)) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def folder_of_one_shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, folder / SHARD)
    write_config(folder)
    return folder


@given(
    st.dictionaries(st.sampled_from(["weight_map", "metadata"]), JSON)
    | st.fixed_dictionaries(
        {"weight_map": st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from([SHARD, "x.safetensors"]))}
    )
)
def test_any_index_is_right_or_refused(folder_of_one_shard: Path, index: Mapping[str, object]) -> None:
    (folder_of_one_shard / INDEX).write_text(json.dumps(index))
    try:
        model = open_model(folder_of_one_shard)
    except WeightsError:
        return
    weight_map = index["weight_map"]
    assert isinstance(weight_map, dict)
    assert {*weight_map} <= {*model.entries} == {"a", "b"}
    assert {*weight_map.values()} == {SHARD}


def test_a_gguf_file_is_opened_as_such(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_llama_gguf(path)
    opened = open_model(path)
    assert isinstance(opened, GgufFile)
    assert opened.format is SourceFormat.GGUF


@pytest.mark.parametrize("new_format", [True, False])
def test_pickles_are_refused_with_the_advice_to_convert(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=new_format)
    write_config(tmp_path)
    for place in (path, tmp_path):
        with pytest.raises(UnsupportedFile, match=r"pytorch_model\.bin: a pickle, which can run code.*save_pretrained"):
            open_model(place)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.00.pth"
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
        with pytest.raises(UnsupportedFile, match="a pickle"):
            open_model(path)


@pytest.mark.parametrize(
    ("magic", "name"), [(b"lmgg", "ggml"), (b"fmgg", "ggmf"), (b"tjgg", "ggjt"), (b"algg", "ggla")]
)
def test_legacy_files_are_refused_with_the_command_that_converts_them(tmp_path: Path, magic: bytes, name: str) -> None:
    path = tmp_path / "ggml-model-q4_0.bin"
    path.write_bytes(magic + b"\1\0\0\0" * 8)
    with pytest.raises(
        UnsupportedFile, match=rf"a legacy GGML file \({name}\).*convert_llama_ggml_to_gguf\.py --input"
    ):
        open_model(path)


def test_a_folder_without_a_model_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match=r"neither model\.safetensors nor .*it holds nothing"):
        open_model(tmp_path)
    for number in range(12):
        (tmp_path / f"{number:02}.txt").touch()
    with pytest.raises(FileMissing, match=r"it holds 00\.txt, .* and 2 more"):
        open_model(tmp_path)
    with pytest.raises(FileMissing):
        SafetensorsModel.open(tmp_path / "nowhere")
