"""Any sequence of operations has the same answers and errors on every store.

LORAMUX_TEST_STATE_EXAMPLES says how many sequences are tried (12), each of up to 40 operations.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ordering_svc.domain.changes import ChangeBatch
from ordering_svc.domain.filter_parser import parse_filter
from ordering_svc.domain.naming import RevisionSelector
from ordering_svc.domain.ordering import AdapterKind, Ordering, OrderingMetadata, Provenance, revision_id_of
from ordering_svc.domain.sorting import SortField, SortOrder
from ordering_svc.errors import OrderingNotFound, OrderingServiceError
from ordering_svc.persistence.sql_store import SqlStore
from ordering_svc.persistence.store import ListQuery, NewFile, OrderingStore, Page, WriteRequest
from tests.contract.ordering_store_fake import DictionaryStore
from tests.databases import POSTGRESQL_VARIABLE, postgresql_url, sqlite_url

EXAMPLES = int(os.environ.get("LORAMUX_TEST_STATE_EXAMPLES", "12"))
CONTENTS = (b"one", b"two", b"three", b"\x00\xff")
REQUEST_IDS = tuple(f"00000000-0000-4000-8000-00000000000{number}" for number in range(3))
SELECTORS = ("1", "2", "3", "prod", "test", *(revision_id_of(content)[:8] for content in CONTENTS))
FILTERS = (
    "",
    "kind = lora",
    'labels.team = "x" OR description:b',
    "NOT labels:team",
    "revision_number > 1 base_model_id = org/6f6e65",
    'ordering_id < "b"',
)

IDS = st.sampled_from(("a", "b", "a-b"))
TAGS = st.sampled_from(("prod", "test"))
ETAGS = st.sampled_from(("none", "current", "first", "wrong"))
FILES = st.sampled_from(CONTENTS).map(
    lambda content: NewFile(content, Provenance("written", model="m"), f"org/{content[:3].hex()}")
)
METADATA = st.builds(
    OrderingMetadata,
    st.sampled_from(AdapterKind),
    st.just("place"),
    st.sampled_from(("", "b", "ü")),
    st.sampled_from(({}, {"team": "x"}, {"team": "y", "k": ""})),
)
HOWS = st.tuples(st.sampled_from((None, None, *REQUEST_IDS)), st.booleans() | st.just(False))
NEWEST_OR = st.none() | st.sampled_from(SELECTORS).map(RevisionSelector)
Call = Callable[[OrderingStore, str | None], Any]  # of a store and the etag that is meant


def plain(answer: object) -> object:
    """An answer without what depends on the clock."""
    match answer:
        case Ordering():
            revision = answer.revision
            return (
                answer.ordering_id,
                answer.metadata,
                answer.etag.partition("-")[0],
                (revision.number, revision.file, revision.provenance, revision.base_model_id),
                answer.tags,
                answer.delete_time_us is None,
            )
        case Page():
            return ([plain(ordering) for ordering in answer.orderings], answer.has_more)
        case ChangeBatch():
            changes = [replace(c, etag=c.etag.partition("-")[0], change_time_us=0) for c in answer.changes]
            return (changes, answer.sequence)
    return answer


class Stores(RuleBasedStateMachine):
    """The same operation on each store, then the same question to each."""

    def __init__(self) -> None:
        super().__init__()
        self._open = ExitStack()
        self._stores: list[OrderingStore] = [DictionaryStore()]
        self._first_etags: list[dict[str, str]] = []
        self._position = 0

    @initialize()
    def open(self) -> None:
        folder = Path(self._open.enter_context(tempfile.TemporaryDirectory()))
        urls = [sqlite_url(folder)]
        if os.environ.get(POSTGRESQL_VARIABLE):
            urls.append(self._open.enter_context(postgresql_url()))
        for url in urls:
            store = SqlStore(url)
            self._open.callback(store.close)
            self._stores.append(store)
        self._first_etags = [{} for _ in self._stores]

    def teardown(self) -> None:
        self._open.close()

    def _same(self, call: Call, ordering_id: str = "", etag: str = "none") -> object:
        """What every store answers or raises; fails if they differ."""
        outcomes: list[object] = []
        for store, firsts in zip(self._stores, self._first_etags, strict=True):
            try:
                answer = call(store, self._etag(store, firsts, ordering_id, etag))
            except OrderingServiceError as error:
                outcomes.append(type(error).__name__)
                continue
            if isinstance(answer, Ordering):
                firsts.setdefault(answer.ordering_id, answer.etag)
            outcomes.append(plain(answer))
        assert all(outcome == outcomes[0] for outcome in outcomes[1:]), outcomes
        return outcomes[0]

    @staticmethod
    def _etag(store: OrderingStore, firsts: dict[str, str], ordering_id: str, etag: str) -> str | None:
        if etag == "current":
            try:
                return store.get(ordering_id, show_deleted=True).etag
            except OrderingNotFound:
                return None
        return {"none": None, "first": firsts.get(ordering_id), "wrong": '"0-0"'}[etag]

    @rule(id_=IDS, metadata=METADATA, file=FILES, how=HOWS)
    def create(self, id_: str, metadata: OrderingMetadata, file: NewFile, how: tuple[str | None, bool]) -> None:
        request = asked(how, "create", id_, metadata, file)
        self._same(lambda store, _: store.create(id_, metadata, file, request))

    @rule(id_=IDS, etag=ETAGS, metadata=METADATA, file=FILES, how=HOWS)
    def update(
        self, id_: str, etag: str, metadata: OrderingMetadata, file: NewFile, how: tuple[str | None, bool]
    ) -> None:
        request = asked(how, "update", id_, metadata, file)
        self._same(lambda store, given: store.update(id_, given or "", metadata, file, request), id_, etag)

    @rule(id_=IDS, etag=ETAGS, how=HOWS, method=st.sampled_from(("delete", "undelete", "purge")))
    def hide(self, id_: str, etag: str, how: tuple[str | None, bool], method: str) -> None:
        request = asked(how, method, id_)
        self._same(lambda store, given: getattr(store, method)(id_, given, request), id_, etag)

    @rule(id_=IDS, etag=ETAGS, tag=TAGS, revision=NEWEST_OR, how=HOWS)
    def tag(
        self, id_: str, etag: str, tag: str, revision: RevisionSelector | None, how: tuple[str | None, bool]
    ) -> None:
        request = asked(how, "tag", id_, tag, revision)
        self._same(lambda store, given: store.tag(id_, given, tag, revision, request), id_, etag)

    @rule(id_=IDS, etag=ETAGS, tag=TAGS, how=HOWS)
    def untag(self, id_: str, etag: str, tag: str, how: tuple[str | None, bool]) -> None:
        request = asked(how, "untag", id_, tag)
        self._same(lambda store, given: store.untag(id_, given, tag, request), id_, etag)

    @rule(id_=IDS, revision=NEWEST_OR, show_deleted=st.booleans())
    def get(self, id_: str, revision: RevisionSelector | None, show_deleted: bool) -> None:
        self._same(lambda store, _: store.get(id_, revision, show_deleted=show_deleted))

    @rule(
        text=st.sampled_from(FILTERS),
        field=st.sampled_from(SortField),
        is_descending=st.booleans(),
        show_deleted=st.booleans(),
        limit=st.integers(1, 3),
        after=st.none() | IDS,
    )
    def list_orderings(
        self, text: str, field: SortField, is_descending: bool, show_deleted: bool, limit: int, after: str | None
    ) -> None:
        wanted, order = parse_filter(text), SortOrder(field, is_descending)
        place = (after,) if after is not None and field is SortField.ORDERING_ID else None
        query = ListQuery(wanted, order, show_deleted, place)
        self._same(lambda store, _: store.list_orderings(query, limit, 8))

    @rule(id_=IDS, before=st.none() | st.integers(1, 4), limit=st.integers(1, 3), show_deleted=st.booleans())
    def list_revisions(self, id_: str, before: int | None, limit: int, show_deleted: bool) -> None:
        self._same(lambda store, _: store.list_revisions(id_, before, limit, 8, show_deleted=show_deleted))

    @rule(request_id=st.sampled_from(REQUEST_IDS))
    def remembered(self, request_id: str) -> None:
        self._same(lambda store, _: store.remembered(WriteRequest(request_id, "of nothing")))

    @rule(limit=st.integers(1, 4), ids=st.frozensets(IDS))
    def watch(self, limit: int, ids: frozenset[str]) -> None:
        self._same(lambda store, _: store.changes_after(self._position, ids, limit))
        self._position = self._stores[0].changes_after(self._position, ids, limit).sequence

    @invariant()
    def every_store_is_where_the_others_are(self) -> None:
        if self._first_etags:
            self._same(lambda store, _: store.newest_sequence())


def asked(how: tuple[str | None, bool], *what: object) -> WriteRequest:
    """A request whose digest tells what is asked for."""
    request_id, validate_only = how
    return WriteRequest(request_id, revision_id_of(repr(what).encode()), validate_only)


TestStores = Stores.TestCase
TestStores.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
