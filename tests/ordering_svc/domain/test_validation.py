"""Every rule of an ordering document, its wording where users know it, and that all problems come at once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ordering_svc.domain.architectures import ModelStructure
from ordering_svc.domain.ordering import AdapterKind, LayerRow, OrderingDocument, PreloadAdapter
from ordering_svc.domain.problems import Severity
from ordering_svc.domain.validation import Expectations, validate_document, validate_file

LLAMA = ModelStructure("llama", 2)
XLORA = Expectations(AdapterKind.XLORA)
LORA = Expectations(AdapterKind.LORA)


def file_of(**keys: object) -> bytes:
    return json.dumps({"base_model_id": "org/model", **keys}).encode()


def codes(file: bytes, expectations: Expectations = LORA) -> list[str]:
    return [problem.code for problem in validate_file(file, expectations)]


def rows(*paths: str) -> dict[str, int]:
    return {path: row for row, path in enumerate(paths)}


Q0, K0 = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"


def test_a_sound_xlora_document_has_no_problems() -> None:
    assert codes(file_of(order=["math", "bio"], layers=rows(Q0, K0)), XLORA) == []


@pytest.mark.parametrize(
    ("keys", "expectations", "code"),
    [
        ({"base_model_id": None}, LORA, "TYPE_WRONG"),
        ({"base_model_id": ""}, LORA, "BASE_MODEL_ID_EMPTY"),
        ({}, XLORA, "ORDER_MISSING"),
        ({"order": []}, XLORA, "ORDER_EMPTY"),
        ({"order": ["a", "a"]}, LORA, "ORDER_DUPLICATE"),
        ({"order": [""]}, LORA, "NAME_EMPTY"),
        ({"order": ["../up"]}, LORA, "NAME_INVALID"),
        ({"order": ["a\u0000"]}, LORA, "NAME_INVALID"),
        ({"order": ["a" * 257]}, LORA, "NAME_TOO_LONG"),
        ({"order": "a"}, LORA, "TYPE_WRONG"),
        ({"order": [1]}, LORA, "TYPE_WRONG"),
        ({"order": ["\ud800"]}, LORA, "NOT_UNICODE"),
        ({"order": [str(i) for i in range(4097)]}, LORA, "TOO_MANY_ENTRIES"),
        ({"order": ["a"]}, XLORA, "LAYERS_MISSING"),
        ({"order": ["a"], "layers": {}}, XLORA, "LAYERS_MISSING"),
        ({"layers": [Q0]}, LORA, "TYPE_WRONG"),
        ({"layers": {Q0: "0"}}, LORA, "ROW_TYPE"),
        ({"layers": {Q0: True}}, LORA, "ROW_TYPE"),
        ({"layers": {Q0: 0.0}}, LORA, "ROW_TYPE"),
        ({"layers": {Q0: 2**70}}, LORA, "ROW_TYPE"),
        ({"layers": {"": 0}}, LORA, "LAYER_PATH_EMPTY"),
        ({"layers": {"x" * 513: 0}}, LORA, "LAYER_PATH_TOO_LONG"),
        ({"layers": {"base_model.model." + Q0: 0}}, LORA, "LAYER_PATH_MALFORMED"),
        ({"layers": {Q0 + ".": 0}}, LORA, "LAYER_PATH_MALFORMED"),
        ({"layers": {Q0: 0, K0: 2}}, LORA, "ROWS_NOT_CONTIGUOUS"),
        ({"layers": {Q0: 0, K0: 0}}, LORA, "ROWS_NOT_CONTIGUOUS"),
        ({"layers": {Q0: 0, K0: -1}}, LORA, "ROWS_NOT_CONTIGUOUS"),
        ({"preload_adapters": {}}, LORA, "TYPE_WRONG"),
        ({"preload_adapters": ["x"]}, LORA, "TYPE_WRONG"),
        ({"preload_adapters": [{"name": "x"}]}, LORA, "PRELOAD_INCOMPLETE"),
        ({"preload_adapters": [{"name": "x", "adapter_model_id": ""}]}, LORA, "PRELOAD_PLACE_EMPTY"),
        ({"preload_adapters": [{"name": "x", "adapter_model_id": "y"}] * 2}, LORA, "PRELOAD_DUPLICATE"),
    ],
)
def test_each_fault_is_an_error_with_its_own_code(
    keys: dict[str, object], expectations: Expectations, code: str
) -> None:
    errors = [problem for problem in validate_file(file_of(**keys), expectations) if problem.is_error]

    assert code in [problem.code for problem in errors]
    for problem in errors:
        assert problem.message.encode()  # valid Unicode, whatever was in the file


def test_a_missing_base_model_is_an_error() -> None:
    assert codes(b'{"layers": {"lm_head": 0}}') == ["BASE_MODEL_ID_MISSING"]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        (b"", "JSON_INVALID"),
        (b"\xff\xfe{}", "NOT_UTF8"),
        (b"[]", "NOT_AN_OBJECT"),
        (b'{"base_model_id": NaN}', "JSON_INVALID"),
        (b'{"a": ' + b"9" * 5000 + b"}", "JSON_INVALID"),
        (b'{"a": ' + b"[" * 200_000, "JSON_TOO_DEEP"),
        (b" " * (16 * 2**20 + 1), "FILE_TOO_LARGE"),
    ],
)
def test_a_file_that_cannot_be_read_has_exactly_that_problem(file: bytes, code: str) -> None:
    assert codes(file) == [code]


def test_duplicate_keys_are_found_on_every_level() -> None:
    file = (
        b'{"base_model_id": "m", "base_model_id": "n", "layers": {"lm_head": 0, "lm_head": 1},'
        b' "preload_adapters": [{"name": "a", "name": "b", "adapter_model_id": "x"}]}'
    )
    assert codes(file).count("KEY_DUPLICATE") == 3


def test_warnings_do_not_forbid_a_document() -> None:
    found = validate_file(file_of(order=["adapter_1", "adapter_10"], note=1), LORA)

    assert [problem.code for problem in found] == ["NAME_PREFIX_COLLISION", "UNKNOWN_KEY", "LAYERS_MISSING"]
    assert {problem.severity for problem in found} == {Severity.WARNING}


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    file = b'{"layers": {"model.layers.9.self_attn.q_proj": 0, "lm_head": 5}, "zz": 1, "order": ["a", "a"]}'
    found = validate_file(file, Expectations(AdapterKind.XLORA, LLAMA, "phi3"))

    assert [(problem.code, problem.field) for problem in found] == [
        ("ROWS_NOT_CONTIGUOUS", "layers"),
        ("LAYER_NOT_SUPPORTED", 'layers["model.layers.9.self_attn.q_proj"]'),
        ("LAYER_INDEX_BEYOND_DEPTH", 'layers["model.layers.9.self_attn.q_proj"]'),
        ("XLORA_LM_HEAD", 'layers["lm_head"]'),
        ("UNKNOWN_KEY", "zz"),
        ("ORDER_DUPLICATE", "order[1]"),
        ("BASE_MODEL_ID_MISSING", "base_model_id"),
    ]


def test_the_reference_systems_wording_is_kept() -> None:
    expectations = Expectations(AdapterKind.XLORA, quantized_architecture="llama")
    file = file_of(order=["a"], layers=rows("model.layers.0.self_attn.qkv_proj", "lm_head"))
    messages = [problem.message for problem in validate_file(file, expectations)]

    assert messages == [
        "Got a layer name `model.layers.0.self_attn.qkv_proj` in the ordering, expected it to end with one of"
        ' ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj",'
        ' "mlp.down_proj", "mlp.gate_proj", "lm_head"]',
        "The X-LoRA adapts the layer `lm_head`: mistral.rs refuses that"
        ' ("Got an adapter `lm_head` layer, this is unsupported with X-LoRA.").',
    ]


def test_an_xlora_that_adapts_the_head_is_valid_though_mistral_rs_refuses_it() -> None:
    file = file_of(order=["a"], layers=rows("model.layers.0.self_attn.q_proj", "lm_head"))
    (problem,) = validate_file(file, Expectations(AdapterKind.XLORA, LLAMA, "llama"))
    assert (problem.code, problem.severity) == ("XLORA_LM_HEAD", Severity.WARNING)
    assert not validate_file(file, Expectations(AdapterKind.LORA, LLAMA, "llama"))


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("model.layers.2.self_attn.q_proj", "LAYER_INDEX_BEYOND_DEPTH"),
        ("model.layers." + "9" * 5000 + ".self_attn.q_proj", "LAYER_INDEX_BEYOND_DEPTH"),
        ("model.layers.0.self_attn.qkv_proj", "LAYER_UNKNOWN"),
        ("model.layers.00.self_attn.q_proj", "LAYER_UNKNOWN"),
        ("model.layers.-1.self_attn.q_proj", "LAYER_UNKNOWN"),
        ("transformer.h.0.attn", "LAYER_UNKNOWN"),
    ],
)
def test_layers_are_checked_against_the_model(path: str, code: str) -> None:
    assert code in codes(file_of(layers={path: 0}), Expectations(structure=LLAMA))


def test_modules_of_the_model_are_accepted() -> None:
    file = file_of(layers=rows(*LLAMA.module_paths()))
    assert codes(file, Expectations(structure=LLAMA)) == []


def test_rows_in_another_order_than_pefts_are_a_warning() -> None:
    phi3 = ModelStructure("phi3", 1)
    file = file_of(layers=rows("model.layers.0.self_attn.qkv_proj", "model.layers.0.self_attn.o_proj"))
    (problem,) = validate_file(file, Expectations(structure=phi3))
    assert (problem.code, problem.severity) == ("ROWS_NOT_IN_PEFT_ORDER", Severity.WARNING)


def test_a_structured_document_is_judged_by_the_same_rules() -> None:
    document = OrderingDocument(
        order=("a", "a"),
        layers=(LayerRow(Q0, 0), LayerRow(Q0, 1)),
        preload_adapters=(PreloadAdapter("", "x"),),
    )
    found = [problem.code for problem in validate_document(document, XLORA)]
    assert found == ["ORDER_DUPLICATE", "KEY_DUPLICATE", "BASE_MODEL_ID_MISSING", "NAME_EMPTY"]


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_bytes_make_the_validation_fail(file: bytes) -> None:
    validate_file(file, XLORA)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["order", "layers", "base_model_id", "preload_adapters", "other"]), JSON_VALUES, max_size=5
    ),
    st.sampled_from(AdapterKind),
    st.sampled_from(["", "llama", "phi3"]),
)
def test_no_json_makes_the_validation_fail(content: dict[str, object], kind: AdapterKind, quantized: str) -> None:
    for problem in validate_file(json.dumps(content).encode(), Expectations(kind, LLAMA, quantized)):
        assert problem.message.encode("utf-8")
        assert problem.field.encode("utf-8") is not None  # encodes
        assert problem.code.isupper()
