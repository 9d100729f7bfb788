"""Tokenizers from Hugging Face folders: what each file says is done, and what is wrong with one is told by its name."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from inference_svc.tokenization.byte_alphabet import BYTE_OF_CHARACTER
from inference_svc.tokenization.decoders import text_of_decoder
from inference_svc.tokenization.errors import (
    ChatTemplateError,
    TokenizationError,
    UnsupportedTokenizer,
    WrongVocabularySize,
)
from inference_svc.tokenization.folder_tokenizer import tokenizer_from_folder
from inference_svc.tokenization.tokenizer import ChatMessage, ModelTokenizer
from inference_svc.weights.errors import FileMissing, MalformedFile, WeightsError

Write = Callable[..., Path]
HI = [ChatMessage("user", "Hi")]


@pytest.fixture
def backend() -> Tokenizer:
    """All bytes and `he`; `<s>` 257 and `</s>` 258 special, `<think>` 259 not."""
    vocabulary = {token: index for index, token in enumerate([*BYTE_OF_CHARACTER, "he"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("h", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<s>", "</s>")])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return tokenizer


@pytest.fixture
def write(backend: Tokenizer, tmp_path: Path) -> Write:
    """Writes a folder: tokenizer.json, and other files by their names with `__` for the dot."""

    def writing(tokenizer: object = None, **files: object) -> Path:
        written = {"tokenizer__json": json.loads(backend.to_str()) if tokenizer is None else tokenizer, **files}
        for name, content in written.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name.replace("__", ".")).write_text(text, encoding="utf-8")
        return tmp_path

    return writing


def test_tokens_and_ends_are_those_that_the_files_name(write: Write) -> None:
    folder = write(
        tokenizer_config__json={"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}},
        generation_config__json={"eos_token_id": [258, 259]},
    )
    tokenizer = tokenizer_from_folder(folder, 260)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.vocab_size) == (257, frozenset({258, 259}), 260)
    ids = tokenizer.encode("he</s><think>")
    assert ids == [256, 258, 259]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "he<think>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "he</s><think>"


def test_a_single_end_in_config_json_is_enough(write: Write) -> None:
    assert tokenizer_from_folder(write(config__json={"eos_token_id": 258})).eos_token_ids == {258}


def test_without_a_generation_config_tokens_that_end_turns_end_an_answer(backend: Tokenizer, write: Write) -> None:
    backend.add_special_tokens([AddedToken("<|eot_id|>", normalized=False)])
    tokenizer = json.loads(backend.to_str())
    assert tokenizer_from_folder(write(tokenizer, config__json={"eos_token_id": 258})).eos_token_ids == {258, 260}
    stated = write(tokenizer, generation_config__json={"eos_token_id": 258})
    assert tokenizer_from_folder(stated).eos_token_ids == {258}


def test_the_older_map_of_special_tokens_is_read_where_no_added_tokens_are_listed(write: Write) -> None:
    older = {"special_tokens_map__json": {"eos_token": "</s>", "bos_token": "<s>"}}
    assert tokenizer_from_folder(write(**older)).bos_token_id == 257
    listed = write(**older, tokenizer_config__json={"added_tokens_decoder": {}, "bos_token": "<think>"})
    assert tokenizer_from_folder(listed).bos_token_id == 259


def test_tokens_around_a_text_are_those_of_the_post_processor(backend: Tokenizer, write: Write) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s> </s>", special_tokens=[("<s>", 257), ("</s>", 258)]
    )
    tokenizer = tokenizer_from_folder(write(json.loads(backend.to_str())))
    assert tokenizer.encode("he") == [257, 256, 258, 258]
    assert tokenizer.encode("") == [257, 258, 258]
    assert tokenizer.encode("he", add_special_tokens=False) == [256]


def test_where_the_post_processor_adds_nothing_the_config_may_ask_for_it(write: Write) -> None:
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    asked = write(tokenizer_config__json={**named, "add_bos_token": True, "add_eos_token": False})
    assert tokenizer_from_folder(asked).encode("he") == [257, 256]
    assert tokenizer_from_folder(write(tokenizer_config__json=named)).encode("he") == [256]


def test_truncation_and_padding_of_the_file_are_for_training(backend: Tokenizer, write: Write) -> None:
    backend.enable_truncation(4)
    backend.enable_padding(length=8, pad_id=0, pad_token="!")
    assert tokenizer_from_folder(write(json.loads(backend.to_str()))).encode("hehehehehehe") == [256] * 6


def test_added_tokens_of_the_config_are_added(write: Write) -> None:
    listed = {"260": {"content": "<|tool|>", "special": True}, "261": {"content": "<b>", "special": False}}
    tokenizer = tokenizer_from_folder(write(tokenizer_config__json={"added_tokens_decoder": listed}), 262)
    assert tokenizer.encode("he<|tool|><b>") == [256, 260, 261]
    assert tokenizer.decode([260, 261], skip_special_tokens=True) == "<b>"


def test_added_tokens_of_the_older_file_are_added(write: Write) -> None:
    assert tokenizer_from_folder(write(added_tokens__json={"<tool>": 260})).encode("<tool>") == [260]


def test_a_named_token_that_the_vocabulary_lacks_stays_text(write: Write) -> None:
    tokenizer = tokenizer_from_folder(write(tokenizer_config__json={"pad_token": "<pad>", "unk_token": None}), 260)
    assert tokenizer.decode(tokenizer.encode("<pad>"), skip_special_tokens=True) == "<pad>"


@pytest.mark.parametrize("vocab_size", [259, 290, 32_000])
def test_a_tokenizer_of_another_model_is_refused_with_both_sizes(write: Write, vocab_size: int) -> None:
    with pytest.raises(WrongVocabularySize, match=rf"260 tokens.*{vocab_size}"):
        tokenizer_from_folder(write(), vocab_size)


def test_a_padded_vocabulary_is_that_of_the_model(write: Write) -> None:
    assert tokenizer_from_folder(write(), 280).vocab_size == 280


CONFIG = "tokenizer_config__json"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer__json", "{", r"tokenizer\.json.*tokenizers library cannot read it"),
        ("tokenizer__json", "[]", "cannot read it"),
        ("tokenizer__json", {"model": {"type": "Markov"}}, "cannot read it"),
        (CONFIG, "{", r"tokenizer_config\.json.*cannot be read"),
        (CONFIG, "[]", "not a JSON object"),
        (CONFIG, "[" * 100_000, "nested too deeply"),
        (CONFIG, {"bos_token": 1}, "'bos_token' is 1"),
        (CONFIG, {"eos_token": {"text": "x"}}, "'eos_token'"),
        (CONFIG, {"added_tokens_decoder": []}, "'added_tokens_decoder'"),
        (CONFIG, {"added_tokens_decoder": {"x": {"content": "y"}}}, "'x'"),
        (CONFIG, {"added_tokens_decoder": {"260": {"content": ""}}}, "'260'"),
        (CONFIG, {"added_tokens_decoder": {"260": "<x>"}}, "'260'"),
        (
            CONFIG,
            {"added_tokens_decoder": {"270": {"content": "<x>"}}},
            r"'<x>' has the id 270, in tokenizer\.json 260",
        ),
        (CONFIG, {"added_tokens_decoder": {"280": {"content": "<x>"}}}, "'<x>' has the id 280: the model's 280"),
        (CONFIG, {"added_tokens_decoder": {"257": {"content": "</s>"}}}, r"'</s>' has the id 257.*258"),
        (CONFIG, {"chat_template": 3}, "'chat_template' is 3"),
        (CONFIG, {"chat_template": [{"name": "default"}]}, "'chat_template'"),
        ("special_tokens_map__json", "no", "special_tokens_map"),
        ("added_tokens__json", {"<x>": "260"}, "'<x>'"),
        ("generation_config__json", {"eos_token_id": "2"}, "'eos_token_id'"),
        ("generation_config__json", {"eos_token_id": [1, -1]}, "'eos_token_id'"),
        ("generation_config__json", {"eos_token_id": 280}, "'eos_token_id' has 280, not one of the ids 0 to 279"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_by_name(write: Write, file: str, content: object, message: str) -> None:
    with pytest.raises(MalformedFile, match=message):
        tokenizer_from_folder(write(**{file: content}), 280)


def test_a_file_that_is_no_text_is_refused(write: Write) -> None:
    folder = write()
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(MalformedFile, match="not UTF-8"):
        tokenizer_from_folder(folder)


def test_a_folder_without_a_tokenizer_json_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileMissing, match="no tokenizer"):
        tokenizer_from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    with pytest.raises(UnsupportedTokenizer, match=r"tokenizer\.model.*save_pretrained"):
        tokenizer_from_folder(tmp_path)


REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
STEPS = [REPLACE, {"type": "ByteFallback"}, {"type": "Fuse"}]


@pytest.mark.parametrize(
    ("decoder", "strips", "newline"),
    [
        ({"type": "Sequence", "decoders": [*STEPS, STRIP]}, True, b"\n"),
        ({"type": "Sequence", "decoders": STEPS}, False, b"\n"),
        ({"type": "Sequence", "decoders": [REPLACE, STEPS[2]]}, False, b"<0x0A>"),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}, True, b"<0x0A>"),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}, False, b"<0x0A>"),
    ],
)
def test_decoders_of_pieces_are_understood(decoder: object, strips: bool, newline: bytes) -> None:
    text = text_of_decoder("x", decoder)
    assert text.strips_leading_space is strips
    assert text.token_bytes("▁he") == b" he"
    assert text.token_bytes("<0x0A>") == newline


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##"},
        {"type": "Metaspace", "replacement": "_"},
        {"type": "Sequence", "decoders": []},
        {"type": "Sequence", "decoders": [*STEPS, {**STRIP, "start": 2}]},
        {"type": "Sequence", "decoders": [STRIP, *STEPS]},
        {"type": "Sequence", "decoders": 3},
    ],
)
def test_other_decoders_are_refused_by_name(decoder: object) -> None:
    with pytest.raises(UnsupportedTokenizer, match=r"decoder.*supported are"):
        text_of_decoder("x", decoder)


def rendered(tokenizer: ModelTokenizer) -> str:
    return tokenizer.render_chat(HI)


def test_chat_templates_come_from_the_strongest_file(write: Write) -> None:
    config: dict[str, Any] = {"bos_token": "<s>", "chat_template": "{{ bos_token }}config"}
    assert rendered(tokenizer_from_folder(write(tokenizer_config__json=config))) == "<s>config"
    config["chat_template"] = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
    assert rendered(tokenizer_from_folder(write(tokenizer_config__json=config))) == "default"
    folder = write(tokenizer_config__json=config, chat_template__jinja="{{ bos_token }}file")
    assert rendered(tokenizer_from_folder(folder)) == "<s>file"


def test_templates_without_a_default_are_told_when_one_is_needed(write: Write) -> None:
    folder = write(tokenizer_config__json={"chat_template": [{"name": "rag", "template": "x"}]})
    with pytest.raises(ChatTemplateError, match=r"templates rag.*none by default"):
        rendered(tokenizer_from_folder(folder))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("x")
    with pytest.raises(ChatTemplateError, match="tool_use"):
        rendered(tokenizer_from_folder(folder))


def test_a_text_that_the_library_panics_over_is_an_error_like_others(write: Write, backend: Tokenizer) -> None:
    files = json.loads(backend.to_str()) | {"normalizer": {"type": "Prepend", "prepend": ""}}
    with pytest.raises(UnsupportedTokenizer, match=r"breaks over .*index out of bounds.* ask with token ids"):
        tokenizer_from_folder(write(files), 280).encode("abc he")


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 300), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.sampled_from(["", "model", "decoder", "pre_tokenizer", "normalizer", "post_processor", "added_tokens"]),
    key=st.sampled_from(["type", "vocab", "merges", "decoders", "pattern", "single", "unk_token", "byte_fallback"]),
    value=JSON,
    config=st.dictionaries(
        st.sampled_from(["bos_token", "eos_token", "chat_template", "added_tokens_decoder", "add_bos_token"]), JSON
    ),
)
def test_any_files_give_a_tokenizer_or_a_typed_error(
    write: Write, backend: Tokenizer, place: str, key: str, value: object, config: object
) -> None:
    tokenizer = json.loads(backend.to_str())
    target = tokenizer.get(place)
    if isinstance(target, dict):
        target[key] = value
    else:
        tokenizer[place or key] = value
    with contextlib.suppress(TokenizationError, WeightsError):
        tokenizer_from_folder(write(tokenizer, tokenizer_config__json=config), 280).encode("abc he")
