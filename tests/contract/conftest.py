"""The stores that have to keep the same contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from ordering_svc.persistence.sql_store import SqlStore
from ordering_svc.persistence.store import OrderingStore
from tests.contract.ordering_store_fake import DictionaryStore


@pytest.fixture(params=["dictionary", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OrderingStore]:
    """An empty store of each kind."""
    made: OrderingStore
    if request.param == "dictionary":
        made = DictionaryStore()
    else:
        made = SqlStore(URL.create("sqlite", database=str(tmp_path / "orderings.sqlite3")))
    yield made
    made.close()
