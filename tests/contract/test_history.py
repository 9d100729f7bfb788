"""Tags, deletion and its undoing, purges: the same on every store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ordering_svc.domain.naming import RevisionSelector
from ordering_svc.domain.ordering import OrderingMetadata, Provenance
from ordering_svc.errors import (
    EtagMismatch,
    OrderingNotDeleted,
    OrderingNotFound,
    RevisionNotFound,
    TagNotFound,
    TooManyTags,
)
from ordering_svc.persistence.store import MAX_TAGS, ListQuery, NewFile, OrderingStore

METADATA = OrderingMetadata()
MANY = 10**9
PROVENANCE = Provenance(
    "generated", "ab" * 32, "1.0", "org/model", "orderings/a@1", '{"targets": ["q_proj"]}', "5.23.0"
)


def file(text: str) -> NewFile:
    return NewFile(text.encode(), PROVENANCE, f"org/{text}")


def at(text: str) -> RevisionSelector:
    return RevisionSelector(text)


def test_all_of_the_provenance_and_the_base_model_are_kept(store: OrderingStore) -> None:
    created = store.create("demo", METADATA, file("one"))
    assert store.get("demo") == created
    assert created.revision.provenance == PROVENANCE
    assert created.revision.base_model_id == "org/one"


def test_a_tag_points_at_one_revision_and_moves(store: OrderingStore) -> None:
    first = store.create("demo", METADATA, file("one"))
    tagged = store.tag("demo", first.etag, "prod", None)
    assert (tagged.tags, tagged.revision) == (("prod",), first.revision)
    assert tagged.etag != first.etag
    second = store.update("demo", tagged.etag, METADATA, file("two"))
    assert second.tags == ()
    assert store.get("demo", at("prod")).revision == first.revision

    moved = store.tag("demo", second.etag, "prod", at("2"))
    assert (moved.tags, moved.revision.number) == (("prod",), 2)
    assert store.tag("demo", moved.etag, "also", at("prod")).tags == ("also", "prod")
    assert store.get("demo", at("1")).tags == ()
    untagged = store.untag("demo", None, "prod")
    assert (untagged.tags, untagged.revision.number) == (("also",), 2)
    with pytest.raises(RevisionNotFound):
        store.get("demo", at("prod"))
    with pytest.raises(TagNotFound):
        store.untag("demo", None, "prod")


def test_setting_a_tag_where_it_is_changes_nothing(store: OrderingStore) -> None:
    store.create("demo", METADATA, file("one"))
    tagged = store.tag("demo", None, "prod", at("1"))
    assert store.tag("demo", tagged.etag, "prod", None) == tagged
    assert store.newest_sequence() == 2


def test_an_ordering_has_a_limited_number_of_tags(store: OrderingStore) -> None:
    store.create("demo", METADATA, file("one"))
    for number in range(MAX_TAGS):
        store.tag("demo", None, f"t{number}", None)
    with pytest.raises(TooManyTags):
        store.tag("demo", None, "one-more", None)
    current = store.get("demo")
    assert store.tag("demo", current.etag, "t3", at("1")) == current


def test_a_deleted_ordering_is_shown_only_to_who_asks_and_comes_back(store: OrderingStore) -> None:
    created = store.create("demo", METADATA, file("one"))
    store.tag("demo", None, "prod", None)
    store.delete("demo", None)

    shown = store.get("demo", at("prod"), show_deleted=True)
    assert shown.delete_time_us is not None
    assert shown.delete_time_us >= created.create_time_us
    assert store.list_orderings(ListQuery(show_deleted=True), 10, MANY).orderings == [shown]
    assert store.list_revisions("demo", None, 10, MANY, show_deleted=True).orderings == [shown]
    with pytest.raises(OrderingNotFound):
        store.tag("demo", None, "x", None)
    with pytest.raises(OrderingNotFound):
        store.untag("demo", None, "prod")

    with pytest.raises(EtagMismatch) as raised:
        store.undelete("demo", created.etag)
    back = store.undelete("demo", raised.value.current_etag)
    assert (back.delete_time_us, back.revision, back.tags) == (None, created.revision, ("prod",))
    assert store.get("demo") == back
    assert len({created.etag, shown.etag, back.etag}) == 3


@pytest.mark.parametrize("method", ["undelete", "purge"])
def test_only_a_deleted_ordering_is_brought_back_or_purged(store: OrderingStore, method: str) -> None:
    call: Callable[..., object] = getattr(store, method)
    with pytest.raises(OrderingNotFound):
        call("demo", None)
    created = store.create("demo", METADATA, file("one"))
    with pytest.raises(OrderingNotDeleted):
        call("demo", created.etag)
    assert store.get("demo") == created


def test_a_purge_removes_all_and_frees_the_id(store: OrderingStore) -> None:
    created = store.create("demo", METADATA, file("one"))
    store.update("demo", created.etag, METADATA, file("two"))
    store.tag("demo", None, "prod", at("1"))
    store.create("other", METADATA, file("kept"))
    store.delete("demo", None)

    with pytest.raises(EtagMismatch):
        store.purge("demo", created.etag)
    assert store.purge("demo", None).revision.number == 2
    with pytest.raises(OrderingNotFound):
        store.get("demo", show_deleted=True)
    again = store.create("demo", METADATA, file("three"))
    assert (again.revision.number, again.tags) == (1, ())
    assert again.etag != created.etag
    with pytest.raises(RevisionNotFound):
        store.get("demo", at("prod"))
    assert store.get("other").revision.file == b"kept"
