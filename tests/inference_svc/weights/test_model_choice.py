"""Which of many files are the model, and what is said of those that are none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_svc.weights.errors import FileMissing, MalformedFile, UnsupportedFile, WeightsError
from inference_svc.weights.listing import Listing, size_text
from inference_svc.weights.model_choice import choose_model
from inference_svc.weights.source import SourceFormat
from tests.inference_svc.weights.repositories import MadeUpListing

GIB = 1 << 30
INDEX = "model.safetensors.index.json"


class Files(Protocol):
    """Makes a listing of files of one GiB each, and of small ones with contents."""

    def __call__(self, *names: str, contents: Mapping[str, object] | None = None) -> Listing: ...


@pytest.fixture
def files(tmp_path: Path) -> Files:
    def make(*names: str, contents: Mapping[str, object] | None = None) -> Listing:
        texts = {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in (contents or {}).items()
        }
        return MadeUpListing(tmp_path, dict.fromkeys(names, GIB), texts)

    return make


CHECKPOINT = ("config.json", "tokenizer.json", "model.safetensors")


def test_the_checkpoint_comes_before_a_gguf_file_beside_it(files: Files) -> None:
    chosen = choose_model(files(*CHECKPOINT, "model.gguf"), None)
    assert chosen.format is SourceFormat.HUGGING_FACE
    assert chosen.first_part is None
    assert chosen.files == ("config.json", "tokenizer.json", "model.safetensors")
    assert choose_model(files(*CHECKPOINT, "model.gguf"), "model.gguf").files == ("model.gguf",)


def test_without_a_config_there_is_no_checkpoint(files: Files) -> None:
    assert choose_model(files("model.safetensors", "model.gguf"), None).files == ("model.gguf",)


def test_one_file_comes_before_an_index_unless_the_index_names_it(files: Files) -> None:
    two = {INDEX: {"weight_map": {"a": "one.safetensors", "b": "model.safetensors"}}}
    chosen = choose_model(files(*CHECKPOINT, "one.safetensors", contents=two), None)
    assert chosen.files[-3:] == (INDEX, "model.safetensors", "one.safetensors")
    other = {INDEX: {"weight_map": {"a": "one.safetensors"}}}
    assert choose_model(files(*CHECKPOINT, contents=other), None).files[-1] == "model.safetensors"


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        "\ufffe",
        {},
        {"weight_map": {}},
        {"weight_map": []},
        {"weight_map": {"a": 1}},
        {"weight_map": {"a": "../model.safetensors"}},
        {"weight_map": {"a": "model.bin"}},
    ],
)
def test_a_broken_index_is_malformed(files: Files, index: object) -> None:
    with pytest.raises(MalformedFile) as caught:
        choose_model(files("config.json", "tokenizer.json", contents={INDEX: index}), None)
    assert INDEX in caught.value.path


def test_a_checkpoint_without_its_tokenizer_is_refused(files: Files) -> None:
    with pytest.raises(UnsupportedFile, match=r"has no tokenizer\.json.*save_pretrained"):
        choose_model(files("config.json", "model.safetensors", "tokenizer.model"), None)


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        (
            ["config.json", "pytorch_model-00001-of-00002.bin"],
            UnsupportedFile,
            r"its weights are pickles \(pytorch_model-00001-of-00002\.bin\), which can run code",
        ),
        (["consolidated.00.pth"], UnsupportedFile, "pickles"),
        (["model.ggmlv3.q4_0.bin"], UnsupportedFile, r"legacy GGML files .*convert_llama_ggml_to_gguf\.py"),
        (["adapter_config.json", "adapter_model.safetensors"], UnsupportedFile, "it is an adapter, not a model"),
        (["xlora_config.json", "xlora_classifier.safetensors"], UnsupportedFile, "it is an adapter, not a model"),
        (["model.safetensors"], FileMissing, r"has model\.safetensors, but no config\.json that describes it"),
        (
            ["config.json", "consolidated.safetensors"],
            FileMissing,
            r"has consolidated\.safetensors, but neither model\.safetensors nor model\.safetensors\.index\.json",
        ),
        (["config.json", "tf_model.h5", "model.onnx"], FileMissing, "it has config.json, model.onnx, tf_model.h5"),
        (["mmproj-F16.gguf"], FileMissing, "holds no model"),
        ([], FileMissing, "it has nothing"),
    ],
)
def test_what_is_no_model_is_told_why(files: Files, names: list[str], kind: type[WeightsError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        choose_model(files(*names), None)
    assert "\n" not in str(caught.value)


def test_the_suggestion_is_a_medium_quantization_where_there_is_one(files: Files) -> None:
    names = [f"Model-{tag}.gguf" for tag in ("F16", "Q2_K", "Q4_K_M", "Q8_0")]
    with pytest.raises(FileMissing, match=r"org/name:Model-Q4_K_M\.gguf; it has Model-F16\.gguf \(1\.0 GiB"):
        choose_model(files(*names), None)
    with pytest.raises(FileMissing, match=r"for instance org/name:Model-Q8_0\.gguf"):
        choose_model(files("Model-F16.gguf", "Model-Q8_0.gguf"), None)
    with pytest.raises(FileMissing, match=r"for instance org/name:a\.gguf"):
        choose_model(files("a.gguf", "b.gguf"), None)


def test_parts_count_as_one_model_with_all_their_bytes(files: Files) -> None:
    parts = [f"Q8_0/Model-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    with pytest.raises(FileMissing, match=r"2 models .*Q8_0/Model-Q8_0-00001-of-00003\.gguf \(3 parts, 3\.0 GiB\)"):
        choose_model(files(*parts, "Model-Q4_0.gguf"), None)
    assert choose_model(files(*parts, "Model-Q4_0.gguf"), "Q8_0").files == tuple(parts)
    with pytest.raises(FileMissing, match=r"has 2 of 3 parts, Q8_0/Model-Q8_0-00002-of-00003\.gguf is missing"):
        choose_model(files(parts[0], parts[2]), None)


def test_parts_of_the_same_name_in_two_folders_are_two_models(files: Files) -> None:
    parts = [f"{folder}/m-0000{number}-of-00002.gguf" for folder in "ab" for number in (1, 2)]
    with pytest.raises(FileMissing, match="2 models"):
        choose_model(files(*parts), None)
    assert choose_model(files(*parts), "b/m-00002-of-00002.gguf").first_part == "b/m-00001-of-00002.gguf"


def test_a_tag_is_the_end_of_a_name_whatever_its_case(files: Files) -> None:
    names = ["Model.Q4_0.gguf", "Model-Q4_0_4_4.gguf", "Model-UD-Q4_K_XL.gguf", "model-iq4_xs.gguf"]
    for tag, expected in [("Q4_0", 0), ("ud-q4_k_xl", 2), ("Q4_K_XL", 2), ("IQ4_XS", 3)]:
        assert choose_model(files(*names), tag).files == (names[expected],)
    for tag in ("4_0", "K_XL.gguf", "Q4", "Model"):
        with pytest.raises(FileMissing):
            choose_model(files(*names), tag)
    with pytest.raises(FileMissing, match="2 models of the repository are called 'Q8_0', name one"):
        choose_model(files("a-Q8_0.gguf", "b-Q8_0.gguf"), "Q8_0")


def test_an_image_encoder_is_no_model_unless_it_is_named(files: Files) -> None:
    listing = files("mmproj-Model-F16.gguf", "Model-Q4_0.gguf")
    assert choose_model(listing, None).files == ("Model-Q4_0.gguf",)
    assert choose_model(listing, "mmproj-Model-F16.gguf").files == ("mmproj-Model-F16.gguf",)


def test_a_long_list_is_cut(files: Files) -> None:
    with pytest.raises(FileMissing, match="and 280 more") as caught:
        choose_model(files(*(f"m{number}.gguf" for number in range(300))), None)
    assert len(str(caught.value)) < 1000


NAMES = st.sampled_from(
    [
        *("config.json", "tokenizer.json", "model.safetensors", INDEX, "pytorch_model.bin", "adapter_config.json"),
        *("a.gguf", "b-Q8_0.gguf", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "x/m-00001-of-00001.gguf"),
        "mmproj.gguf",
    ]
)


@given(names=st.sets(NAMES), wanted=st.none() | NAMES | st.text(max_size=20))
def test_whatever_lies_there_a_choice_is_made_of_it_or_refused(
    tmp_path_factory: pytest.TempPathFactory, names: set[str], wanted: str | None
) -> None:
    index = {INDEX: '{"weight_map": {"a": "model.safetensors"}}'} if INDEX in names else {}
    listing = MadeUpListing(tmp_path_factory.getbasetemp(), dict.fromkeys(names, 1), index)
    try:
        chosen = choose_model(listing, wanted)
    except WeightsError:
        return
    assert set(chosen.files) <= names
    assert (chosen.first_part is None) == (chosen.format is SourceFormat.HUGGING_FACE)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_sizes_are_written_for_people(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text
