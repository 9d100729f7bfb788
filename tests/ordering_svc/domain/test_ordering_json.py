"""Files round-trip: documents through canonical bytes, and canonical bytes are those of `create_ordering.py`."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from ordering_svc.domain.ordering import LayerRow, OrderingDocument, PreloadAdapter, revision_id_of
from ordering_svc.domain.ordering_json import parse_file, render_file

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
DOCUMENTS = st.builds(
    OrderingDocument,
    order=st.none() | st.lists(NAMES, max_size=4).map(tuple),
    layers=st.none()
    | st.lists(st.builds(LayerRow, NAMES, st.integers(-5, 2**40)), max_size=4, unique_by=lambda row: row.path).map(
        tuple
    ),
    base_model_id=st.none() | NAMES,
    preload_adapters=st.none() | st.lists(st.builds(PreloadAdapter, NAMES, NAMES), max_size=3).map(tuple),
)


@given(DOCUMENTS)
def test_a_document_survives_its_file(document: OrderingDocument) -> None:
    parsed = parse_file(render_file(document))

    assert parsed.document == document
    assert parsed.problems == ()
    assert render_file(parsed.document) == render_file(document)


def test_the_canonical_bytes_are_those_of_the_reference_script() -> None:
    document = OrderingDocument(("math", "bio"), (LayerRow("lm_head", 0),), "org/model")
    written = json.dumps({"order": ["math", "bio"], "layers": {"lm_head": 0}, "base_model_id": "org/model"})
    assert render_file(document) == written.encode()


def test_absent_and_empty_keys_are_told_apart() -> None:
    assert parse_file(b"{}").document == OrderingDocument()
    assert parse_file(b'{"order": [], "layers": {}, "preload_adapters": []}').document == OrderingDocument(
        (), (), None, ()
    )


def test_the_order_of_layers_is_that_of_the_file() -> None:
    file = b'{"layers": {"b": 1, "a": 0}, "base_model_id": "m"}'
    assert parse_file(file).document.layers == (LayerRow("b", 1), LayerRow("a", 0))


def test_a_revision_id_is_a_content_address() -> None:
    assert revision_id_of(b"{}") == "44136fa355b3678a"
