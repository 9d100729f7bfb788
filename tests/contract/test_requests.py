"""A write with a request id happens once; one that only validates does not happen: the same on every store."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import text

from ordering_svc.domain.ordering import AdapterKind, Ordering, OrderingMetadata, Provenance
from ordering_svc.errors import EtagMismatch, InvalidValue, OrderingExists, OrderingNotFound
from ordering_svc.persistence.sql_store import SqlStore
from ordering_svc.persistence.store import REQUEST_LIFETIME_US, NewFile, OrderingStore, WriteRequest

METADATA = OrderingMetadata(AdapterKind.LORA, "org/adapters", "ü", {"team": "ä"})
OTHER = OrderingMetadata(description="other")


def file(text_: str) -> NewFile:
    return NewFile(text_.encode(), Provenance("written", service_version="1"), "org/model")


def request(digest: str = "d") -> WriteRequest:
    return WriteRequest(str(uuid.uuid4()), digest)


WRITES: dict[str, Callable[[OrderingStore, WriteRequest], Ordering]] = {
    "create": lambda store, how: store.create("new", METADATA, file("new"), how),
    "update": lambda store, how: store.update("demo", store.get("demo").etag, OTHER, file("two"), how),
    "delete": lambda store, how: store.delete("demo", None, how),
    "undelete": lambda store, how: store.undelete("gone", None, how),
    "purge": lambda store, how: store.purge("gone", None, how),
    "tag": lambda store, how: store.tag("demo", None, "new-tag", None, how),
    "untag": lambda store, how: store.untag("demo", None, "prod", how),
}


@pytest.fixture
def filled(store: OrderingStore) -> OrderingStore:
    """With an ordering, tagged, and a deleted one."""
    store.create("demo", METADATA, file("one"))
    store.tag("demo", None, "prod", None)
    store.create("gone", METADATA, file("gone"))
    store.delete("gone", None)
    return store


def state(store: OrderingStore) -> list[object]:
    orderings: list[object] = [store.newest_sequence()]
    for ordering_id in ("demo", "gone", "new"):
        try:
            orderings.append(store.get(ordering_id, show_deleted=True))
        except OrderingNotFound:
            orderings.append(None)
    return orderings


@pytest.mark.parametrize("name", WRITES)
def test_a_repeated_write_gets_the_first_answer_and_changes_nothing(filled: OrderingStore, name: str) -> None:
    how = request()
    answer = WRITES[name](filled, how)
    after = state(filled)
    assert filled.remembered(how) == answer
    if name != "update":  # of which the test's own call reads the ordering first
        assert WRITES[name](filled, how) == answer
    assert filled.update("demo", "stale", OTHER, file("never"), how) == answer
    assert state(filled) == after
    with pytest.raises(InvalidValue) as raised:
        WRITES[name](filled, replace(how, digest="another"))
    assert raised.value.violations[0].field == "request_id"
    assert state(filled) == after


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_only_validates_answers_and_writes_nothing(filled: OrderingStore, name: str) -> None:
    before = state(filled)
    how = request()
    tried = WRITES[name](filled, replace(how, validate_only=True))
    assert state(filled) == before
    assert filled.remembered(how) is None
    done = WRITES[name](filled, how)
    assert (tried.etag.partition("-")[0], tried.revision.file, tried.tags, tried.metadata) == (
        done.etag.partition("-")[0],
        done.revision.file,
        done.tags,
        done.metadata,
    )
    assert state(filled) != before


def test_a_refused_write_uses_up_no_request_id(filled: OrderingStore) -> None:
    how = request()
    with pytest.raises(OrderingExists):
        filled.create("demo", METADATA, file("x"), how)
    with pytest.raises(EtagMismatch):
        filled.update("demo", "stale", METADATA, file("x"), how)
    assert filled.remembered(how) is None
    assert filled.create("new", METADATA, file("x"), how).revision.number == 1


def test_an_answer_outlives_the_purge_of_what_it_tells(store: OrderingStore) -> None:
    hows = [request() for _ in range(4)]
    created = store.create("demo", METADATA, file("one"), hows[0])
    updated = store.update("demo", created.etag, OTHER, file("two"), hows[1])
    store.delete("demo", None, hows[2])
    purged = store.purge("demo", None, hows[3])
    store.create("demo", OTHER, file("three"))

    assert [store.remembered(how) for how in hows] == [created, updated, updated, purged]
    assert store.create("demo", METADATA, file("one"), hows[0]) == created


def test_of_equal_requests_at_once_one_writes_and_all_get_its_answer(store: OrderingStore) -> None:
    how = request()
    barrier = threading.Barrier(8)

    def create(number: int) -> Ordering:
        barrier.wait()
        try:
            return store.create("demo", METADATA, file(str(number)), how)
        except OrderingExists:  # seen before the answer was: the use cases ask for it then
            answered = store.remembered(how)
            assert answered is not None
            return answered

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(create, range(8)))
    assert all(answer == answers[0] for answer in answers)
    assert (store.get("demo"), store.newest_sequence()) == (answers[0], 1)


def test_equal_tags_at_once_are_one_change(store: OrderingStore) -> None:
    store.create("demo", METADATA, file("one"))
    how = request()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: store.tag("demo", None, f"t{n}", None, how), range(8)))
    assert all(answer == answers[0] for answer in answers)
    assert (store.get("demo").tags, store.newest_sequence()) == (answers[0].tags, 2)
    assert len(answers[0].tags) == 1


def test_an_answer_is_forgotten_after_a_day(store: OrderingStore) -> None:
    if not isinstance(store, SqlStore):
        pytest.skip("a dictionary does not live for a day")
    hows = [request() for _ in range(3)]
    for number, how in enumerate(hows):
        store.create(f"o{number}", METADATA, file("one"), how)
    age = text("UPDATE write_requests SET create_time_us = create_time_us - :age WHERE request_id <> :kept")
    with store.engine.begin() as connection:
        connection.execute(age, {"age": REQUEST_LIFETIME_US + 10**6, "kept": hows[2].request_id})

    assert store.remembered(hows[0]) is None
    assert store.create("again", METADATA, file("one"), hows[0]).ordering_id == "again"
    with store.engine.connect() as connection:
        kept = set(connection.execute(text("SELECT request_id FROM write_requests")).scalars())
    assert kept == {hows[0].request_id, hows[2].request_id}
