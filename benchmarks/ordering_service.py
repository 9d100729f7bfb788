"""How fast the ordering service is on a large database: `python -m benchmarks.ordering_service [--orderings N]`.

Fills a SQLite database with orderings of several revisions each (small LoRA documents of some 200 bytes, written
straight into the tables), starts the service on it, and measures over gRPC on loopback: start, GetOrdering, a page of
ListOrderings (plain, filtered, by update time), and CreateOrdering, each durable before it is answered, by one client
and by eight. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from sqlalchemy import insert, update
from sqlalchemy.engine import URL

from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2, ordering_service_pb2_grpc
from ordering_svc.persistence.database import open_database, writing
from ordering_svc.persistence.tables import ChangeCounterRow, ChangeRow, OrderingRow, RevisionRow

P: Any = ordering_pb2
S: Any = ordering_service_pb2
BATCH = 500
PAGE_SIZE = 50


def fill(url: URL, num_orderings: int, num_revisions: int) -> None:
    """Write the rows that as many calls would have written."""
    engine = open_database(url)
    for first in range(0, num_orderings, BATCH):
        numbers = range(first, min(first + BATCH, num_orderings))
        orderings, revisions, changes = [], [], []
        for number in numbers:
            ordering_id = f"ordering-{number:06}"
            orderings.append(
                {
                    "ordering_id": ordering_id,
                    "kind": ("lora", "xlora")[number % 2],
                    "adapter_model_id": "",
                    "description": f"number {number}",
                    "labels": json.dumps({"team": f"t{number % 100}"}),
                    "change_number": num_revisions,
                    "revision_number": num_revisions,
                    "create_time_us": number,
                    "update_time_us": number + num_revisions,
                }
            )
            for revision in range(1, num_revisions + 1):
                file = json.dumps({"order": [f"a{k}" for k in range(20)], "base_model_id": f"m/{number}/{revision}"})
                content = file.encode()
                id_ = hashlib.sha256(content).hexdigest()[:16]
                revisions.append(
                    {
                        "ordering_id": ordering_id,
                        "revision_number": revision,
                        "revision_id": id_,
                        "num_bytes": len(content),
                        "content": content,
                        "create_time_us": number + revision,
                        "method": "written",
                        "config_digest": "",
                        "service_version": "0",
                        "base_model_id": f"m/{number}/{revision}",
                    }
                )
                changes.append(
                    {
                        "sequence": number * num_revisions + revision,
                        "type": "created" if revision == 1 else "updated",
                        "ordering_id": ordering_id,
                        "revision_number": revision,
                        "revision_id": id_,
                        "etag": "",
                        "change_time_us": number + revision,
                        "tag": "",
                        "tagged_revision_number": 0,
                    }
                )
        with writing(engine).begin() as connection:
            connection.execute(insert(OrderingRow), orderings)
            connection.execute(insert(RevisionRow), revisions)
            connection.execute(insert(ChangeRow), changes)
            connection.execute(update(ChangeCounterRow).values(newest=(numbers[-1] + 1) * num_revisions))
    engine.dispose()


def started(data_dir: Path) -> tuple[subprocess.Popen[bytes], str, float]:
    """The service on a data folder, its address, and the seconds until it took calls."""
    port_file = data_dir / "port"
    flags = [
        "--data-dir",
        str(data_dir),
        "--listen",
        "127.0.0.1:0",
        "--port-file",
        str(port_file),
        "--log-level",
        "error",
    ]
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "ordering_svc", *flags])
    while not port_file.exists():
        time.sleep(0.005)
    return process, port_file.read_text().strip(), time.perf_counter() - begun


def timed(count: int, call: Callable[[int], object]) -> dict[str, float]:
    """Milliseconds of one call after the other."""
    seconds = []
    for number in range(count):
        begun = time.perf_counter()
        call(number)
        seconds.append(time.perf_counter() - begun)
    ranked = sorted(seconds)
    return {
        "p50_ms": round(statistics.median(seconds) * 1000, 3),
        "p99_ms": round(ranked[int(len(ranked) * 0.99)] * 1000, 3),
    }


def creations_per_second(address: str, num_clients: int, each: int) -> float:
    """Durable creations by clients at once, each waiting for its answers."""

    def create(client: int) -> None:
        with grpc.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),)) as channel:
            stub: Any = ordering_service_pb2_grpc.OrderingServiceStub(channel)
            for number in range(each):
                document = P.OrderingDocument(base_model_id="m", order=P.AdapterNames(names=["a", "b"]))
                ordering_id = f"new-{num_clients}-{client}-{number}"
                stub.CreateOrdering(
                    S.CreateOrderingRequest(ordering_id=ordering_id, ordering=P.Ordering(document=document))
                )

    threads = [threading.Thread(target=create, args=(client,)) for client in range(num_clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return round(num_clients * each / (time.perf_counter() - begun), 1)


def figures(data_dir: Path, num_orderings: int) -> Iterator[tuple[str, object]]:
    """Every measurement with its name."""
    process, address, seconds = started(data_dir)
    yield "start_seconds", round(seconds, 2)
    chance = random.Random(1)
    ids = [f"ordering-{chance.randrange(num_orderings):06}" for _ in range(2000)]
    with grpc.insecure_channel(address) as channel:
        stub: Any = ordering_service_pb2_grpc.OrderingServiceStub(channel)
        yield "get", timed(2000, lambda n: stub.GetOrdering(S.GetOrderingRequest(name=f"orderings/{ids[n]}")))
        yield (
            "get_old_revision",
            timed(1000, lambda n: stub.GetOrdering(S.GetOrderingRequest(name=f"orderings/{ids[n]}@2"))),
        )
        lists = {
            "list_page": S.ListOrderingsRequest(page_size=PAGE_SIZE),
            "list_page_by_update_time": S.ListOrderingsRequest(page_size=PAGE_SIZE, order_by="update_time desc"),
            "list_page_of_a_kind": S.ListOrderingsRequest(page_size=PAGE_SIZE, filter="kind = xlora"),
            "list_page_with_a_label": S.ListOrderingsRequest(page_size=PAGE_SIZE, filter='labels.team = "t7"'),
        }
        for name, request in lists.items():
            token = stub.ListOrderings(request).next_page_token
            request.page_token = token
            yield name, timed(200, lambda _, request=request: stub.ListOrderings(request))  # type: ignore[misc]
        yield "create_per_second_1_client", creations_per_second(address, 1, 500)
        yield "create_per_second_8_clients", creations_per_second(address, 8, 250)
    process.terminate()
    process.wait()


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orderings", type=int, default=100_000)
    parser.add_argument("--revisions", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        database = data_dir / "orderings.sqlite3"
        begun = time.perf_counter()
        fill(URL.create("sqlite", database=str(database)), arguments.orderings, arguments.revisions)
        result: dict[str, object] = {
            "orderings": arguments.orderings,
            "revisions_each": arguments.revisions,
            "fill_seconds": round(time.perf_counter() - begun, 1),
            "database_mib": round(database.stat().st_size / 2**20),
        }
        result |= dict(figures(data_dir, arguments.orderings))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
