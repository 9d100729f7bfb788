"""What differs between two documents, and how people are told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ordering_svc.domain.diff import Difference, differences, told
from ordering_svc.domain.ordering import LayerRow, OrderingDocument, PreloadAdapter

LAYERS = tuple(LayerRow(f"model.layers.{index}.q_proj", index) for index in range(160))


def test_documents_that_say_the_same_differ_in_nothing() -> None:
    document = OrderingDocument(("a",), LAYERS, "m", (PreloadAdapter("x", "p"), PreloadAdapter("y", "p")))
    spelled_otherwise = OrderingDocument(
        ("a",), LAYERS[::-1], "m", (PreloadAdapter("y", "p"), PreloadAdapter("x", "p"))
    )
    assert differences(document, spelled_otherwise) == ()
    assert told(()) == ""


def test_every_difference_is_told_in_document_order() -> None:
    before = OrderingDocument(("a", "b", "c"), (LayerRow("x", 0), LayerRow("y", 1)), "m", (PreloadAdapter("p", "old"),))
    after = OrderingDocument(("a", "ü"), (LayerRow("x", 0), LayerRow("z", 1)), None, (PreloadAdapter("p", "new"),))
    found = differences(before, after)
    assert found == (
        Difference("order[1]", '"b"', '"ü"'),
        Difference("order[2]", '"c"', None),
        Difference('layers["y"]', "1", None),
        Difference('layers["z"]', None, "1"),
        Difference("base_model_id", '"m"', None),
        Difference('preload_adapters["p"]', '"old"', '"new"'),
    )
    assert told(found).splitlines() == [
        'order[1]: "b" -> "ü"',
        'order[2] removed: "c"',
        'layers["y"] removed: 1',
        'layers["z"] added: 1',
        'base_model_id removed: "m"',
        'preload_adapters["p"]: "old" -> "new"',
    ]


def test_rows_that_moved_together_are_one_line() -> None:
    moved = (LayerRow("model.embed_tokens", 0), *(LayerRow(layer.path, layer.row + 1) for layer in LAYERS))
    found = differences(OrderingDocument(layers=LAYERS), OrderingDocument(layers=moved))
    assert len(found) == 161
    assert told(found).splitlines() == [
        'layers: 160 entries moved by +1, from layers["model.layers.0.q_proj"]: 0 -> 1'
        ' to layers["model.layers.159.q_proj"]: 159 -> 160',
        'layers["model.embed_tokens"] added: 0',
    ]


def test_an_empty_list_is_not_a_missing_one() -> None:
    found = differences(OrderingDocument(order=(), layers=()), OrderingDocument(preload_adapters=()))
    assert found == (
        Difference("order", "[]", None),
        Difference("layers", "{}", None),
        Difference("preload_adapters", None, "[]"),
    )


NAMES = st.lists(st.sampled_from("abcd"), unique=True, max_size=4)
DOCUMENTS = st.builds(
    OrderingDocument,
    st.none() | NAMES.map(tuple),
    st.none() | NAMES.map(lambda names: tuple(LayerRow(name, row) for row, name in enumerate(names))),
    st.none() | st.sampled_from(["m", "n"]),
    st.none() | NAMES.map(lambda names: tuple(PreloadAdapter(name, "p") for name in names)),
)


@given(DOCUMENTS, DOCUMENTS)
def test_what_was_added_one_way_was_removed_the_other(before: OrderingDocument, after: OrderingDocument) -> None:
    there, back = differences(before, after), differences(after, before)
    assert {(d.field, d.before, d.after) for d in there} == {(d.field, d.after, d.before) for d in back}
    assert (not told(there)) == (not there)
