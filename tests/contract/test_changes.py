"""The row of all changes: gapless, in the order of the writes, kept for ever; the same on every store."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from ordering_svc.domain.changes import ChangeType, OrderingChange
from ordering_svc.domain.ordering import OrderingMetadata, Provenance
from ordering_svc.persistence.store import NewFile, OrderingStore

METADATA = OrderingMetadata()


def file(text: str) -> NewFile:
    return NewFile(text.encode(), Provenance("written"))


def test_every_change_is_told_once_also_after_a_purge(store: OrderingStore) -> None:
    assert (store.newest_sequence(), store.changes_after(0, (), 10).changes) == (0, ())
    first = store.create("demo", METADATA, file("one"))
    second = store.update("demo", first.etag, METADATA, file("two"))
    store.update("demo", second.etag, METADATA, file("two"))  # changes nothing, so tells nothing
    tagged = store.tag("demo", None, "prod", None)
    untagged = store.untag("demo", None, "prod")
    store.delete("demo", None)
    back = store.undelete("demo", None)
    store.delete("demo", None)
    gone = store.get("demo", show_deleted=True)
    store.purge("demo", None)

    batch = store.changes_after(0, (), 100)
    assert batch.sequence == store.newest_sequence() == 8
    assert [change.sequence for change in batch.changes] == list(range(1, 9))
    told = [(c.type, c.revision_number, c.etag, c.tag, c.tagged_revision_number) for c in batch.changes]
    assert told[:4] == [
        (ChangeType.CREATED, 1, first.etag, "", 0),
        (ChangeType.UPDATED, 2, second.etag, "", 0),
        (ChangeType.TAGGED, 2, tagged.etag, "prod", 2),
        (ChangeType.TAGGED, 2, untagged.etag, "prod", 0),
    ]
    assert [type_ for type_, *_ in told[4:]] == [
        ChangeType.DELETED,
        ChangeType.UNDELETED,
        ChangeType.DELETED,
        ChangeType.PURGED,
    ]
    assert [told[5][2], told[6][2], told[7][2]] == [back.etag, gone.etag, ""]
    assert batch.changes[-1].revision_id == second.revision.revision_id
    times = [change.change_time_us for change in batch.changes]
    assert times == sorted(times)


def test_changes_are_read_in_batches_and_of_the_named_orderings_only(store: OrderingStore) -> None:
    for number in range(6):
        store.create(f"o{number}", METADATA, file("x"))
    first = store.changes_after(0, (), 4)
    rest = store.changes_after(first.sequence, (), 4)
    assert [c.ordering_id for c in (*first.changes, *rest.changes)] == [f"o{n}" for n in range(6)]
    assert (first.sequence, rest.sequence, store.changes_after(6, (), 4).sequence) == (4, 6, 6)

    some = store.changes_after(0, {"o1", "o4", "never"}, 10)
    assert [c.ordering_id for c in some.changes] == ["o1", "o4"]
    assert some.sequence == 6
    assert store.changes_after(0, {"o1", "o4"}, 1).sequence == 2


def test_no_change_becomes_visible_before_an_earlier_one(store: OrderingStore) -> None:
    seen: list[OrderingChange] = []
    is_done = threading.Event()

    def follow() -> None:
        position = 0
        while True:
            was_done = is_done.is_set()
            batch = store.changes_after(position, (), 7)
            seen.extend(batch.changes)
            position = batch.sequence
            if was_done and position == store.newest_sequence():
                return

    def write(writer: int) -> None:
        for number in range(10):
            store.create(f"o{writer}-{number}", METADATA, file("x"))

    with ThreadPoolExecutor(5) as threads:
        follower = threads.submit(follow)
        for future in [threads.submit(write, writer) for writer in range(4)]:
            future.result()
        is_done.set()
        follower.result()
    assert [change.sequence for change in seen] == list(range(1, 41))
    assert len({change.ordering_id for change in seen}) == 40
