"""What every ordering store promises; the same tests run on each."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ordering_svc.domain.naming import RevisionSelector
from ordering_svc.domain.ordering import AdapterKind, Ordering, OrderingMetadata, Provenance
from ordering_svc.errors import EtagMismatch, InvalidName, OrderingExists, OrderingNotFound, RevisionNotFound
from ordering_svc.persistence.store import ListQuery, NewFile, OrderingStore

METADATA = OrderingMetadata(AdapterKind.XLORA, "org/adapters", "for math", {"team": "a", "stage": "ü"})
MANY = 10**9


def file(text: str) -> NewFile:
    return NewFile(text.encode(), Provenance("written", "ab" * 32, "1.0"))


def revision(text: str) -> RevisionSelector:
    return RevisionSelector(text)


def test_what_was_created_is_read_back(store: OrderingStore) -> None:
    created = store.create("demo", METADATA, file("one"))

    assert created.ordering_id == "demo"
    assert created.metadata == METADATA
    assert (created.revision.number, created.revision.file) == (1, b"one")
    assert created.revision.provenance == Provenance("written", "ab" * 32, "1.0")
    assert store.get("demo") == created


def test_an_id_is_taken_once_even_by_a_deleted_ordering(store: OrderingStore) -> None:
    store.create("demo", METADATA, file("one"))
    with pytest.raises(OrderingExists) as raised:
        store.create("demo", METADATA, file("two"))
    assert raised.value.metadata["deleted"] == "false"

    store.delete("demo", None)
    with pytest.raises(OrderingExists) as raised:
        store.create("demo", METADATA, file("two"))
    assert raised.value.metadata["deleted"] == "true"
    assert store.get("demo", show_deleted=True).delete_time_us is not None


def test_changed_bytes_make_the_next_revision_and_old_ones_stay(store: OrderingStore) -> None:
    first = store.create("demo", METADATA, file("one"))
    second = store.update("demo", first.etag, METADATA, file("two"))

    assert second.revision.number == 2
    assert store.get("demo") == second
    assert store.get("demo", revision("1")).revision == first.revision
    assert store.get("demo", revision("1")).etag == second.etag


def test_unchanged_bytes_make_no_revision_but_metadata_changes_the_etag(store: OrderingStore) -> None:
    first = store.create("demo", METADATA, file("one"))

    assert store.update("demo", first.etag, METADATA, file("one")) == first
    changed = store.update("demo", first.etag, OrderingMetadata(), file("one"))
    assert changed.revision == first.revision
    assert changed.metadata == OrderingMetadata()
    assert changed.etag != first.etag


def test_a_stale_etag_changes_nothing_and_names_the_current_one(store: OrderingStore) -> None:
    first = store.create("demo", METADATA, file("one"))
    second = store.update("demo", first.etag, METADATA, file("two"))

    with pytest.raises(EtagMismatch) as raised:
        store.update("demo", first.etag, METADATA, file("three"))
    assert raised.value.current_etag == second.etag
    with pytest.raises(EtagMismatch):
        store.delete("demo", first.etag)
    assert store.get("demo") == second


def test_an_etag_never_comes_back_when_the_content_does(store: OrderingStore) -> None:
    first = store.create("demo", METADATA, file("one"))
    second = store.update("demo", first.etag, METADATA, file("two"))
    third = store.update("demo", second.etag, METADATA, file("one"))

    assert third.revision.revision_id == first.revision.revision_id
    assert third.revision.number == 3
    assert len({first.etag, second.etag, third.etag}) == 3
    assert store.get("demo", revision(first.revision.revision_id)).revision.number == 3


def test_a_revision_is_found_by_number_id_and_the_beginning_of_its_id(store: OrderingStore) -> None:
    created = store.create("demo", METADATA, file("one"))
    revision_id = created.revision.revision_id

    assert store.get("demo", revision(revision_id)) == created
    assert store.get("demo", revision(revision_id[:6])) == created
    for missing in ("2", "000000000000", "999999999999999999"):
        with pytest.raises(RevisionNotFound):
            store.get("demo", revision(missing))


def test_the_beginning_of_two_ids_is_ambiguous(store: OrderingStore) -> None:
    # The SHA-256 of these two texts begin with the same six digits.
    one, two = "text 859", "text 4460"
    from ordering_svc.domain.ordering import revision_id_of

    prefix = revision_id_of(one.encode())[:6]
    assert revision_id_of(two.encode()).startswith(prefix)
    first = store.create("demo", METADATA, file(one))
    store.update("demo", first.etag, METADATA, file(two))

    with pytest.raises(InvalidName):
        store.get("demo", revision(prefix))


def test_a_deleted_ordering_is_gone_for_every_reader_and_writer(store: OrderingStore) -> None:
    created = store.create("demo", METADATA, file("one"))

    assert store.delete("demo", created.etag) == created
    attempts: list[Callable[[], object]] = [
        lambda: store.get("demo"),
        lambda: store.get("demo", revision("1")),
        lambda: store.list_revisions("demo", None, 10, MANY),
        lambda: store.update("demo", created.etag, METADATA, file("two")),
        lambda: store.delete("demo", None),
        lambda: store.get("never-made"),
    ]
    for attempt in attempts:
        with pytest.raises(OrderingNotFound):
            attempt()
    assert store.list_orderings(ListQuery(), 10, MANY).orderings == []


def test_orderings_are_listed_by_id_in_pages_that_miss_nothing(store: OrderingStore) -> None:
    ids = ["b", "a1", "a", "a-b", "c"]
    for ordering_id in ids:
        store.create(ordering_id, METADATA, file(ordering_id))
    store.delete("b", None)

    listed: list[str] = []
    page = store.list_orderings(ListQuery(), 2, MANY)
    while True:
        listed += [ordering.ordering_id for ordering in page.orderings]
        assert len(page.orderings) <= 2
        if not page.has_more:
            break
        page = store.list_orderings(ListQuery(after=(listed[-1],)), 2, MANY)
    assert listed == ["a", "a-b", "a1", "c"]


def test_a_page_ends_early_when_its_files_are_large(store: OrderingStore) -> None:
    for ordering_id in "abc":
        store.create(ordering_id, METADATA, file("x" * 100))

    page = store.list_orderings(ListQuery(), 10, 250)
    assert ([o.ordering_id for o in page.orderings], page.has_more) == (["a", "b"], True)
    page = store.list_orderings(ListQuery(after=("b",)), 10, 1)
    assert ([o.ordering_id for o in page.orderings], page.has_more) == (["c"], False)


def test_revisions_are_listed_newest_first(store: OrderingStore) -> None:
    current = store.create("demo", METADATA, file("1"))
    for number in range(2, 6):
        current = store.update("demo", current.etag, METADATA, file(str(number)))

    page = store.list_revisions("demo", None, 3, MANY)
    assert [o.revision.number for o in page.orderings] == [5, 4, 3]
    assert page.has_more
    page = store.list_revisions("demo", 3, 3, MANY)
    assert [o.revision.number for o in page.orderings] == [2, 1]
    assert not page.has_more


def test_any_bytes_are_kept_as_they_are(store: OrderingStore) -> None:
    content = bytes(range(256)) * 40
    created = store.create("demo", METADATA, NewFile(content, Provenance("imported")))
    assert store.get("demo") == created
    assert store.get("demo").revision.file == content


def test_the_key_of_page_tokens_is_long_enough(store: OrderingStore) -> None:
    assert len(store.page_token_key()) == 32


def test_eight_threads_that_compare_and_set_lose_no_update(store: OrderingStore) -> None:
    store.create("demo", METADATA, file("0"))

    def add_one() -> Ordering:
        while True:
            current = store.get("demo")
            number = int(current.revision.file) + 1
            try:
                return store.update("demo", current.etag, METADATA, file(str(number)))
            except EtagMismatch:
                continue

    with ThreadPoolExecutor(8) as threads:
        done = [future.result() for future in [threads.submit(add_one) for _ in range(80)]]

    assert sorted(ordering.revision.number for ordering in done) == list(range(2, 82))
    assert store.get("demo").revision.file == b"80"
    numbers = [o.revision.number for o in store.list_revisions("demo", None, 100, MANY).orderings]
    assert numbers == list(range(81, 0, -1))


def test_of_threads_that_create_one_id_exactly_one_succeeds(store: OrderingStore) -> None:
    def create(number: int) -> bool:
        try:
            store.create("demo", METADATA, file(str(number)))
        except OrderingExists:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(create, range(16))) == 1
