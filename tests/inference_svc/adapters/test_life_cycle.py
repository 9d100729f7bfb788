"""Loads that meet: two of one name, files that change underneath, limits that evict, orderings under requests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from inference_svc.adapters import loading_threads
from inference_svc.adapters import lora as lora_module
from inference_svc.adapters.adapter_files import read_adapter_tensors
from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape
from inference_svc.adapters.loading_threads import (
    MAX_WAITING,
    NICENESS,
    NUM_THREADS,
    SHARE,
    LoadingThreads,
)
from inference_svc.adapters.lora import LoadedLora, load_lora
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.resident import LoadItem
from inference_svc.adapters.selection import ActiveSelection, LoraSelection
from inference_svc.errors import (
    AdapterExists,
    AdapterMalformed,
    DigestMismatch,
    InvalidRequest,
    LimitReached,
    SourceChanged,
)
from inference_svc.service import AdapterFolders
from tests.inference_svc.adapters.conftest import AdapterWriter

MakeLora = Callable[[str, int], LoadedLora]


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    write: AdapterWriter, base: BaseModelShape, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    folder = write.lora("pirate")
    read = lora_module.read_adapter_tensors  # type: ignore[attr-defined]

    def read_and_disturb(*arguments: object) -> object:
        tensors = read(*arguments)  # type: ignore[arg-type]
        with (folder / file).open("ab") as stream:
            stream.write(b" ")
        return tensors

    monkeypatch.setattr(lora_module, "read_adapter_tensors", read_and_disturb)
    with pytest.raises(SourceChanged, match="the files of pirate changed while they were read; load it again"):
        load_lora(folder, base, AdapterLimits())


def test_a_file_that_is_still_being_written_is_not_called_broken(write: AdapterWriter, base: BaseModelShape) -> None:
    path = write.lora("pirate") / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-100])

    class WrittenToMeanwhile:
        def update(self, _content: bytes) -> None:
            with path.open("ab") as stream:
                stream.write(b" ")

    with pytest.raises(SourceChanged, match="was written to while it was read; load it again"):
        read_adapter_tensors(path, "pirate.safetensors", 1 << 20, WrittenToMeanwhile())  # type: ignore[arg-type]
    path.write_bytes(content[:-100])
    with pytest.raises(AdapterMalformed, match="truncated"):
        load_lora(path.parent, base, AdapterLimits())


async def test_of_many_loads_of_one_name_at_once_one_wins_and_no_other_shows(
    write: AdapterWriter, base: BaseModelShape, tmp_path: Path
) -> None:
    seeds = {load_lora(write.lora(f"v{seed}", seed=seed), base, AdapterLimits()).digest: seed for seed in range(6)}
    registry, threads = AdapterRegistry(base, AdapterLimits()), LoadingThreads()
    folders = AdapterFolders(registry, (tmp_path,), threads)

    def load(seed: int, *, replaces: bool, expected: str | None = None) -> asyncio.Task[object]:
        source = str(tmp_path / f"v{seed}")
        return asyncio.ensure_future(
            folders.load("hot", source, replace=replaces, expected_digest=expected, pinned=False)
        )

    outcomes = await asyncio.gather(*(load(seed, replaces=False) for seed in range(6)), return_exceptions=True)
    assert sum(isinstance(outcome, AdapterExists) for outcome in outcomes) == 5
    won = registry.get("hot").digest
    # All others expect the digest that they have read; compare-and-set lets one of them through.
    others = [seed for seed in range(6) if seed != seeds[won]]
    outcomes = await asyncio.gather(
        *(load(seed, replaces=True, expected=won) for seed in others), return_exceptions=True
    )
    assert sum(isinstance(outcome, DigestMismatch) for outcome in outcomes) == 4
    assert seeds[registry.get("hot").digest] in others
    with pytest.raises(InvalidRequest, match="set `replace` with it"):
        await load(0, replaces=False, expected=won)
    threads.close()


async def test_too_many_waiting_loads_are_refused_and_a_caller_that_leaves_harms_nobody() -> None:
    threads, gate = LoadingThreads(), threading.Event()
    waiting = [asyncio.ensure_future(threads.run(gate.wait)) for _ in range(NUM_THREADS + MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(LimitReached, match="64 loads are waiting"):
        await threads.run(gate.wait)
    waiting[0].cancel()
    gate.set()
    assert all(await asyncio.gather(*waiting[1:]))
    assert await threads.run(gate.wait)
    threads.close()


@pytest.mark.parametrize("engine_has_work", [True, False])
async def test_loads_rest_for_most_of_the_time_while_the_engine_has_work_and_only_then(
    write: AdapterWriter, base: BaseModelShape, monkeypatch: pytest.MonkeyPatch, engine_has_work: bool
) -> None:
    folder = write.lora("pirate")
    computed, rested = [0.0], list[float]()

    def thread_time() -> float:
        computed[0] += 2**-9  # the next call of torch took so long, which is more than a slice
        return computed[0]

    monkeypatch.setattr(loading_threads.time, "thread_time", thread_time)  # type: ignore[attr-defined]
    monkeypatch.setattr(loading_threads.time, "sleep", rested.append)  # type: ignore[attr-defined]
    threads = LoadingThreads(lambda: engine_has_work)
    await threads.run(lambda: load_lora(folder, base, AdapterLimits()))
    threads.close()
    assert set(rested) == ({2**-9 * (1 / SHARE - 1)} if engine_has_work else set())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all threads of a process have its priority")
@pytest.mark.parametrize("own", [0, 15])
def test_loads_give_way_to_the_service_that_they_are_loads_of_whatever_its_own_priority(own: int) -> None:
    program = f"""
import asyncio, os, threading
from inference_svc.adapters.loading_threads import LoadingThreads

os.nice(max(0, {own} - os.nice(0)))
threads = LoadingThreads()
print(os.nice(0), asyncio.run(threads.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))))
threads.close()
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    service, load = map(int, said.stdout.split())
    assert service >= own
    assert load == min(19, service + NICENESS)


def test_a_limit_evicts_what_was_used_longest_ago_and_spares_the_rest(base: BaseModelShape, lora: MakeLora) -> None:
    registry = AdapterRegistry(base, AdapterLimits(max_adapters=4, evict=True))
    for seed, name in enumerate(["pinned", "active", "leased", "old"]):
        registry.load(name, lora(name, seed), source="s", pinned=name == "pinned")
    registry.activate(LoraSelection({"active": 1.0}))
    lease = registry.lease(LoraSelection({"leased": 1.0}))
    registry.load("new", lora("new", 7), source="s")
    assert [adapter.name for adapter in registry.list_all()] == ["active", "leased", "new", "pinned"]
    registry.load("newer", lora("newer", 8), source="s")
    lease_of_newer = registry.lease(LoraSelection({"newer": 1.0}))
    with pytest.raises(LimitReached, match=r"5 adapters, the limit is 4: unload some first \(1 are pinned"):
        registry.load("newest", lora("newest", 9), source="s")
    assert [adapter.name for adapter in registry.list_all()] == ["active", "leased", "newer", "pinned"]
    lease.release()
    lease_of_newer.release()
    assert registry.load("newest", lora("newest", 9), source="s").name == "newest"


def test_a_limit_on_bytes_evicts_only_as_much_as_it_must(base: BaseModelShape, lora: MakeLora) -> None:
    size = lora("a", 1).nbytes
    registry = AdapterRegistry(base, AdapterLimits(max_bytes=3 * size, evict=True))
    for seed, name in enumerate(["a", "b", "c"]):
        registry.load(name, lora(name, seed), source="s")
    registry.lease(LoraSelection({"a": 1.0})).release()
    registry.load("d", lora("d", 5), source="s")
    assert [adapter.name for adapter in registry.list_all()] == ["a", "c", "d"]


def test_without_eviction_the_refusal_names_the_option(base: BaseModelShape, lora: MakeLora) -> None:
    registry = AdapterRegistry(base, AdapterLimits(max_adapters=1))
    registry.load("a", lora("a", 1), source="s")
    with pytest.raises(LimitReached, match="start the service with --eviction lru") as caught:
        registry.load("b", lora("b", 2), source="s")
    assert caught.value.metadata["limit"] == "1"


def test_a_new_revision_of_an_ordering_leaves_running_requests_on_the_old_one(
    base: BaseModelShape, lora: MakeLora
) -> None:
    registry = AdapterRegistry(base, AdapterLimits())
    old, new = lora("old", 1), lora("new", 2)
    chosen = LoraSelection({"hot": 1.0})
    registry.load_all([LoadItem("hot", old, "s")], ordering="orderings/o@1", activate=chosen)
    running = registry.lease(ActiveSelection())
    registry.load_all([LoadItem("hot", new, "s")], ordering="orderings/o@2", activate=chosen)
    assert (running.applied[0].digest, running.applied[0].ordering) == (old.digest, "orderings/o@1")
    assert running.mixture.constant[0].bank is old.bank
    later = registry.lease(ActiveSelection())
    assert (later.applied[0].digest, later.applied[0].ordering) == (new.digest, "orderings/o@2")
    running.release()
    later.release()
    assert registry.retired_versions == 0


def test_a_replaced_adapter_keeps_its_pin(base: BaseModelShape, lora: MakeLora) -> None:
    registry = AdapterRegistry(replace(base), AdapterLimits())
    registry.load("a", lora("a", 1), source="s", pinned=True)
    assert registry.load("a", lora("b", 2), source="s", replace=True).pinned
