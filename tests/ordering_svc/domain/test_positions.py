"""Line and column of a problem are those an editor shows."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ordering_svc.domain.ordering import AdapterKind
from ordering_svc.domain.ordering_json import layer_place
from ordering_svc.domain.positions import positions_in
from ordering_svc.domain.problems import Problem
from ordering_svc.domain.validation import Expectations, validate_file

FILE = b"""{
  "order": ["a",
     "a", 3],
  "layers": {"model.layers.0.self_attn.q_proj": 0, "lm_head": 5, "lm_head": 6},
  "zz": 1,
  "preload_adapters": [ {"name": "x"}, {"name": "", "adapter_model_id": "y"}, 4 ]
}
"""


def places(file: bytes) -> dict[tuple[str, str], tuple[int, int]]:
    positions = positions_in(file)
    found = {}
    for problem in validate_file(file, Expectations(AdapterKind.XLORA)):
        position = positions.of(problem)
        found[problem.code, problem.field] = (position.line, position.column)
    return found


def test_each_problem_points_at_its_field() -> None:
    assert places(FILE) == {
        ("ORDER_DUPLICATE", "order[1]"): (3, 6),
        ("TYPE_WRONG", "order[2]"): (3, 11),
        ("XLORA_LM_HEAD", 'layers["lm_head"]'): (4, 52),
        ("KEY_DUPLICATE", 'layers["lm_head"]'): (4, 66),  # the second one
        ("UNKNOWN_KEY", "zz"): (5, 3),
        ("PRELOAD_INCOMPLETE", "preload_adapters[0].adapter_model_id"): (6, 25),  # the entry that lacks it
        ("NAME_EMPTY", "preload_adapters[1].name"): (6, 41),
        ("TYPE_WRONG", "preload_adapters[2]"): (6, 79),
        ("BASE_MODEL_ID_MISSING", "base_model_id"): (1, 1),
    }


@pytest.mark.parametrize(
    ("file", "place"),
    [
        (b'{\n  "order": [,]\n}', (2, 13)),
        (b"{} trailing", (1, 4)),
        (b"", (1, 1)),
        ('{\n"ä": "'.encode() + b"\xff", (2, 7)),
        (b"[1]", (1, 1)),
    ],
)
def test_a_file_that_cannot_be_read_is_pointed_at_where_reading_stopped(file: bytes, place: tuple[int, int]) -> None:
    assert list(places(file).values()) == [place]


def test_columns_count_characters_not_bytes() -> None:
    file = '{"order": ["äöü", "a", "a"], "layers": {"lm_head": 0}, "base_model_id": "m"}'
    assert places(file.encode())["ORDER_DUPLICATE", "order[2]"] == (1, file.index('"a"]') + 1)


@given(st.dictionaries(st.text(max_size=20), st.integers(), max_size=8), st.sampled_from([None, 1, "\t"]))
def test_every_layer_is_found_whatever_its_path_and_the_layout(
    layers: dict[str, int], indent: int | str | None
) -> None:
    text = json.dumps({"layers": layers}, indent=indent, ensure_ascii=False)
    positions = positions_in(text.encode("utf-8", "surrogatepass"))
    lines = text.split("\n")
    for path in layers:
        position = positions.of(Problem("LAYER_UNKNOWN", layer_place(path), ""))
        key = json.dumps(path, ensure_ascii=False)
        assert lines[position.line - 1][position.column - 1 :].startswith(key)


@given(st.binary(max_size=80) | st.text(alphabet='{}[]",: order\n', max_size=80).map(str.encode))
def test_no_bytes_make_it_fail(file: bytes) -> None:
    positions = positions_in(file)
    for field in ("", "order", "order[0]", 'layers["x"]', "preload_adapters[0].name"):
        assert positions.of(Problem("TYPE_WRONG", field, "", entry=10**6)).line >= 1
