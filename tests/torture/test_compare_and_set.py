"""Many clients on two servers raise one number, each guarded by the etag that it read: no update is lost."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy.engine import URL

from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2
from ordering_svc.persistence.examination import examine
from tests.torture.scale import INCREMENTS, TIMEOUT_SECONDS
from tests.torture.service import SETTINGS, OrderingProcess, stub_for

P: Any = ordering_pb2
S: Any = ordering_service_pb2
CLIENTS = 16
NAME = "orderings/counter"


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_no_update_is_lost(tmp_path: Path) -> None:
    first = OrderingProcess(tmp_path / "data", tmp_path / "port0")
    addresses = [first.address()]
    second = OrderingProcess(tmp_path / "data", tmp_path / "port1")
    addresses.append(second.address())
    tickets = itertools.count()  # taking one is atomic
    lost_races = [0] * CLIENTS
    failures: list[BaseException] = []

    def raise_it(client: int) -> None:
        try:
            with grpc.insecure_channel(addresses[client % 2], SETTINGS) as channel:
                stub = stub_for(channel)
                while next(tickets) < INCREMENTS:
                    while not _increment(stub):
                        lost_races[client] += 1
        except BaseException as error:
            failures.append(error)

    with grpc.insecure_channel(addresses[0], SETTINGS) as channel:
        document = P.OrderingDocument(base_model_id="0")
        request = S.CreateOrderingRequest(ordering_id="counter", ordering=P.Ordering(document=document))
        stub_for(channel).CreateOrdering(request)
        threads = [threading.Thread(target=raise_it, args=(client,)) for client in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        last: Any = stub_for(channel).GetOrdering(S.GetOrderingRequest(name=NAME))
    assert last.document.base_model_id == str(INCREMENTS)
    assert last.revision_number == INCREMENTS + 1
    first.kill()
    second.kill()
    url = URL.create("sqlite", database=str(tmp_path / "data" / "orderings.sqlite3"))
    assert [finding for finding in examine(url) if not finding.is_sound] == []
    print(f"{INCREMENTS} updates by {CLIENTS} clients, {sum(lost_races)} lost races")  # noqa: T201 - for the README


def _increment(stub: Any) -> bool:
    """Read, add one, write if nothing came between; False if something did."""
    current = stub.GetOrdering(S.GetOrderingRequest(name=NAME), timeout=60)
    document = P.OrderingDocument(base_model_id=str(int(current.document.base_model_id) + 1))
    try:
        stub.UpdateOrdering(S.UpdateOrderingRequest(name=NAME, etag=current.etag, document=document), timeout=60)
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE):
            raise
        return False
    return True
