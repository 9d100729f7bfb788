"""The stores that have to keep the same contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ordering_svc.persistence.sql_store import SqlStore
from ordering_svc.persistence.store import OrderingStore
from tests.contract.ordering_store_fake import DictionaryStore
from tests.databases import DATABASES, database_url


@pytest.fixture(params=["dictionary", *DATABASES])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OrderingStore]:
    """An empty store of each kind."""
    if request.param == "dictionary":
        yield DictionaryStore()
        return
    with database_url(request.param, tmp_path) as url:
        made = SqlStore(url)
        yield made
        made.close()
