"""What the system says of its memory, and the refusal of what cannot fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_svc.weights.errors import NotEnoughMemory
from inference_svc.weights.memory import available_memory, check_memory, give_back_memory

CPU = torch.device("cpu")
MIB = 1 << 20
V1 = "9:name=systemd:/x\n4:cpu,memory:/outer/inner\n0::/x\n"
V2 = "0::/outer/inner\n"


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def system(root: Path, groups: str, available: int = 1000 * MIB) -> None:
    meminfo = f"MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable: {available // 1024} kB"
    write(root, {"proc/meminfo": meminfo, "proc/self/cgroup": groups})


def group_v2(root: Path, name: str, limit: int | str, usage: int, active: int = 0, inactive: int = 0) -> None:
    folder = f"sys/fs/cgroup/{name}"
    stat = f"anon 7\nactive_file {active}\ninactive_file {inactive}"
    write(root, {f"{folder}/memory.max": limit, f"{folder}/memory.current": usage, f"{folder}/memory.stat": stat})


def group_v1(root: Path, name: str, limit: int, usage: int, active: int = 0, inactive: int = 0) -> None:
    folder = f"sys/fs/cgroup/memory/{name}"
    stat = f"active_file 5\ntotal_active_file {active}\ntotal_inactive_file {inactive}"
    usages = {f"{folder}/memory.limit_in_bytes": limit, f"{folder}/memory.usage_in_bytes": usage}
    write(root, usages | {f"{folder}/memory.stat": stat})


def test_without_groups_it_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    system(tmp_path, "")
    assert available_memory(CPU, tmp_path) == 1000 * MIB


def test_a_system_that_tells_nothing_is_not_guessed_at(tmp_path: Path) -> None:
    assert available_memory(CPU, tmp_path) is None


def test_this_machine_tells_something() -> None:
    available = available_memory(CPU)
    assert available is not None
    assert 0 < available < 1 << 50


@pytest.mark.parametrize("version", [1, 2])
def test_page_cache_in_a_group_counts_as_free(tmp_path: Path, version: int) -> None:
    system(tmp_path, V1 if version == 1 else V2)
    group = group_v1 if version == 1 else group_v2
    group(tmp_path, "outer/inner", limit=500 * MIB, usage=450 * MIB, active=100 * MIB, inactive=250 * MIB)
    assert available_memory(CPU, tmp_path) == 400 * MIB


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("place", ["outer/inner", "outer", "."])
def test_the_tightest_of_the_nested_groups_decides(tmp_path: Path, version: int, place: str) -> None:
    system(tmp_path, V1 if version == 1 else V2)
    group = group_v1 if version == 1 else group_v2
    for name in ("outer/inner", "outer", "."):
        group(tmp_path, name, limit=(300 if name == place else 800) * MIB, usage=100 * MIB)
    group(tmp_path, "outer/other", limit=1, usage=1)
    assert available_memory(CPU, tmp_path) == 200 * MIB


def test_a_group_under_the_hosts_path_is_found_where_it_is_mounted(tmp_path: Path) -> None:
    system(tmp_path, "4:memory:/docker/0123456789abcdef\n")
    group_v1(tmp_path, ".", limit=300 * MIB, usage=100 * MIB)
    assert available_memory(CPU, tmp_path) == 200 * MIB


def test_groups_without_a_limit_do_not_count(tmp_path: Path) -> None:
    system(tmp_path, V1 + V2)
    group_v2(tmp_path, "outer/inner", limit="max", usage=999 * MIB)
    group_v1(tmp_path, "outer/inner", limit=(1 << 63) - 4096, usage=999 * MIB)
    assert available_memory(CPU, tmp_path) == 1000 * MIB


def test_a_group_that_is_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    system(tmp_path, V2)
    group_v2(tmp_path, "outer/inner", limit=100 * MIB, usage=101 * MIB)
    assert available_memory(CPU, tmp_path) == 0


@pytest.mark.parametrize("library", [None, object()])
def test_freed_memory_is_given_back_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    if library is not None:
        monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    give_back_memory()


def test_the_refusal_has_the_arithmetic() -> None:
    needs = {"weights": 4_370_000_000, "a KV cache of 16384 tokens": 600_000_000}
    with pytest.raises(NotEnoughMemory) as caught:
        check_memory("m.gguf", needs, 3_200_000_000, "take a smaller model")
    assert str(caught.value) == (
        "m.gguf: it does not fit: 4.37 GB (weights) + 0.60 GB (a KV cache of 16384 tokens) = 4.97 GB, "
        "and 3.20 GB are available; take a smaller model"
    )


@given(st.dictionaries(st.text(), st.integers(0, 1 << 45)), st.none() | st.integers(0, 1 << 45))
def test_what_fits_is_not_refused_and_what_does_not_is(needs: dict[str, int], available: int | None) -> None:
    if available is None or sum(needs.values()) <= available:
        check_memory("m.gguf", needs, available, "")
    else:
        with pytest.raises(NotEnoughMemory):
            check_memory("m.gguf", needs, available, "")


@pytest.mark.cuda
def test_on_a_cuda_device_it_is_what_the_device_has_free() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    available = available_memory(torch.device("cuda"))
    assert available is not None
    assert 0 < available <= torch.cuda.get_device_properties(0).total_memory
