"""Derived files differ in the changed value only; every other byte is that of the file they are made from."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ordering_svc.domain.derivation import Derivation, derive
from ordering_svc.domain.json_splicing import members_of, with_value
from ordering_svc.domain.ordering import LayerRow, OrderingDocument, PreloadAdapter
from ordering_svc.domain.ordering_json import render_file
from ordering_svc.domain.provenance import arguments_json
from ordering_svc.domain.target_selection import TargetSelection
from ordering_svc.errors import InvalidRequest, InvalidValue

MATH, BIO = PreloadAdapter("math", "org/math"), PreloadAdapter("bio", "org/bio")
DOCUMENT = OrderingDocument(("a", "b"), (LayerRow("lm_head", 0),), "org/model", (MATH,))
WITH_ODD_BYTES = b'{ "layers" : {"lm_head":0},\n"note": 1.50e0, "order":["a"] ,"base_model_id": "\\u006d"}\r\n'


def reasons(file: bytes, derivation: Derivation) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as raised:
        derive(file, derivation)
    return [(violation.field, violation.reason) for violation in raised.value.violations]


def test_names_replace_the_order_as_the_reference_systems_script_does() -> None:
    expected = OrderingDocument(("x",), DOCUMENT.layers, DOCUMENT.base_model_id, DOCUMENT.preload_adapters)
    assert derive(render_file(DOCUMENT), Derivation(("x",))) == render_file(expected)
    # A file without the key gets it at its end, as a Python dictionary does.
    bare = b'{"layers": {"lm_head": 0}, "base_model_id": "m"}'
    assert derive(bare, Derivation(("x",))) == b'{"layers": {"lm_head": 0}, "base_model_id": "m", "order": ["x"]}'


def test_every_other_byte_stays_however_the_file_is_written() -> None:
    assert derive(WITH_ODD_BYTES, Derivation(("b", "c"))) == WITH_ODD_BYTES.replace(b'["a"]', b'["b", "c"]')


def test_an_indented_file_gets_an_indented_value() -> None:
    content = {"order": ["a"], "base_model_id": "m"}
    file = json.dumps(content, indent=4).encode() + b"\n"
    changed = {**content, "order": ["é"], "preload_adapters": [{"name": "math", "adapter_model_id": "org/math"}]}
    assert derive(file, Derivation(("é",), (MATH,))) == json.dumps(changed, indent=4).encode() + b"\n"


def test_preload_adapters_are_added_at_the_end_and_removed_by_name() -> None:
    file = render_file(DOCUMENT)
    both = derive(file, Derivation(add_preload_adapters=(BIO,)))
    assert json.loads(both)["preload_adapters"] == [
        {"name": "math", "adapter_model_id": "org/math"},
        {"name": "bio", "adapter_model_id": "org/bio"},
    ]
    assert derive(both, Derivation(remove_preload_adapters=("bio",))) == file
    elsewhere = PreloadAdapter("math", "org/other")
    replaced = derive(file, Derivation(None, (elsewhere,), ("math",)))
    assert json.loads(replaced)["preload_adapters"] == [{"name": "math", "adapter_model_id": "org/other"}]


def test_names_that_are_twice_there_or_not_there_are_each_told() -> None:
    file = render_file(DOCUMENT)
    assert reasons(file, Derivation(("a", "b", "a"))) == [("adapter_names[2]", "NAME_DUPLICATE")]
    assert reasons(file, Derivation(None, (BIO, MATH, BIO), ("gone",))) == [
        ("add_preload_adapters[2].name", "NAME_DUPLICATE"),
        ("remove_preload_adapters[0]", "PRELOAD_UNKNOWN"),
        ("add_preload_adapters[1].name", "PRELOAD_DUPLICATE"),
    ]
    with pytest.raises(InvalidRequest, match="preloaded: math"):
        derive(file, Derivation(remove_preload_adapters=("gone",)))
    with pytest.raises(InvalidValue, match="nothing to derive"):
        derive(file, Derivation())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(), VALUES, max_size=4),
    st.text(),
    VALUES,
    st.sampled_from([None, 0, 1, 2, "\t"]),
    st.booleans(),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : ")]),
)
def test_a_spliced_object_is_the_object_with_the_value(
    content: dict[str, object],
    key: str,
    value: object,
    indent: int | str | None,
    is_ascii: bool,
    separators: tuple[str, str],
) -> None:
    text = json.dumps(content, indent=indent, ensure_ascii=is_ascii, separators=separators)
    spliced = with_value(text, key, value)
    assert json.loads(spliced) == {**content, key: value}
    assert list(json.loads(spliced)) == list({**content, key: value})
    if key in content:
        place = next(member for member in members_of(text) if member.key == key)
        assert spliced.startswith(text[: place.start])
        assert spliced.endswith(text[place.end :])


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a"}', '{"a": 1', '{"a": 1,}', "{1: 2}", '{"a": 1 "b": 2}'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        with_value(text, "b", 2)


def test_provenance_keeps_what_was_asked_and_counts_what_is_long() -> None:
    kept = json.loads(arguments_json(TargetSelection("all-linear", ("lm_head",)), architecture="llama"))
    assert kept == {"architecture": "llama", "target_modules": "all-linear", "exclude_modules": ["lm_head"]}
    derivation = Derivation(tuple(f"adapter_{number}" for number in range(65)), (MATH,))
    assert json.loads(arguments_json(derivation)) == {"adapter_names": 65, "add_preload_adapters": ["math"]}
