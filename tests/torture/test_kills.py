"""Killed while it writes, again and again: what was acknowledged is there, and nothing is there by half."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy.engine import URL

from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2
from ordering_svc.persistence.examination import examine
from tests.torture.scale import KILLS, TIMEOUT_SECONDS
from tests.torture.service import SETTINGS, OrderingProcess, stub_for

P: Any = ordering_pb2
S: Any = ordering_service_pb2
CLIENTS = 8


@dataclass
class Client:
    """Writes revisions of an ordering of its own, whose document counts them; knows what was acknowledged."""

    ordering_id: str
    acknowledged: dict[int, str] = field(default_factory=dict)  # revision number -> revision id
    last_sent: int = 0
    request_ids: dict[int, str] = field(default_factory=dict)
    failure: grpc.RpcError | None = None

    def write_until(self, stub: Any, is_over: threading.Event) -> None:
        """Add revisions, one after the other, until a call fails or the time is over."""
        try:
            while not is_over.is_set():
                self._write_next(stub)
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                self.failure = error

    def _write_next(self, stub: Any) -> None:
        number = max(self.acknowledged, default=0) + 1
        self.last_sent = number
        # The same id after a kill: the write may have happened without our having heard of it.
        request_id = self.request_ids.setdefault(number, str(uuid.uuid4()))
        document = P.OrderingDocument(base_model_id=f"{self.ordering_id}/{number}")
        if number == 1:
            request = S.CreateOrderingRequest(
                ordering_id=self.ordering_id, ordering=P.Ordering(document=document), request_id=request_id
            )
            answer = stub.CreateOrdering(request, timeout=30)
        else:
            name = f"orderings/{self.ordering_id}"
            answer = stub.UpdateOrdering(
                S.UpdateOrderingRequest(name=name, document=document, request_id=request_id), timeout=30
            )
        if answer.revision_number != number:
            raise AssertionError(f"{self.ordering_id}@{number} was answered as {answer.revision_number}")
        self.acknowledged[number] = answer.revision_id

    def check(self, stub: Any) -> None:
        """Every acknowledged revision is there as it was; at most the one in flight is there beside them."""
        assert self.failure is None, self.failure
        if not self.last_sent:
            return
        there = {revision.revision_number: revision for revision in _revisions(stub, self.ordering_id)}
        for number, revision_id in self.acknowledged.items():
            assert there[number].revision_id == revision_id, f"{self.ordering_id}@{number} was lost or changed"
        assert sorted(there) == list(range(1, len(there) + 1)), "the history has a gap"
        assert len(there) <= self.last_sent
        for number, revision in there.items():
            assert revision.document.base_model_id == f"{self.ordering_id}/{number}", "a revision is there by half"


def _revisions(stub: Any, ordering_id: str) -> Iterator[Any]:
    token = ""
    while True:
        request = S.ListOrderingRevisionsRequest(name=f"orderings/{ordering_id}", page_size=1000, page_token=token)
        try:
            page = stub.ListOrderingRevisions(request, timeout=60)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:  # the first write was killed
                return
            raise
        yield from page.revisions
        token = page.next_page_token
        if not token:
            return


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_no_acknowledged_write_is_lost_and_none_is_half_there(tmp_path: Path) -> None:
    chance = random.Random(20261124)
    clients = [Client(f"client-{number}") for number in range(CLIENTS)]
    url = URL.create("sqlite", database=str(tmp_path / "data" / "orderings.sqlite3"))
    for _ in range(KILLS):
        service = OrderingProcess(tmp_path / "data", tmp_path / "port")
        is_over = threading.Event()
        with grpc.insecure_channel(service.address(), SETTINGS) as channel:
            threads = [
                threading.Thread(target=client.write_until, args=(stub_for(channel), is_over)) for client in clients
            ]
            for thread in threads:
                thread.start()
            time.sleep(chance.uniform(0.05, 0.6))
            service.kill()
            is_over.set()
            for thread in threads:
                thread.join()

    service = OrderingProcess(tmp_path / "data", tmp_path / "port")
    with grpc.insecure_channel(service.address(), SETTINGS) as channel:
        for client in clients:
            client.check(stub_for(channel))
    service.kill()
    assert [finding for finding in examine(url) if not finding.is_sound] == []
    written = sum(len(client.acknowledged) for client in clients)
    assert written > KILLS, "too little was written for this to mean anything"
    print(f"{KILLS} kills, {written} acknowledged writes, none lost")  # noqa: T201 - the figure that the README tells
