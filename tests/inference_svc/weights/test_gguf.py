"""GGUF files that are truncated, changed or lie: each is a typed error, quickly and in little memory."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inference_svc.weights.errors import FileChanged, FileMissing, MalformedFile, UnsupportedFile, WeightsError
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.gguf_header import GgufHeader, read_header

UINT32, BOOL, STRING, ARRAY, UINT64 = 4, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str, dimensions: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    numbers = struct.pack(f"<{len(dimensions)}Q", *dimensions)
    return text(name) + struct.pack("<I", len(dimensions)) + numbers + struct.pack("<IQ", kind, offset)


def file_of(
    *,
    entries: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    magic: bytes = b"GGUF",
    version: int = 3,
    num_entries: int | None = None,
    num_tensors: int | None = None,
    data: bytes = b"\0" * 256,
    alignment: int = 32,
) -> bytes:
    counts = (
        len(infos) if num_tensors is None else num_tensors,
        len(entries) if num_entries is None else num_entries,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(infos)
    return head + b"\0" * (-len(head) % alignment) + data


class Bytes:
    """A file that is read a few bytes at a time, so that every field is once the last that was read."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self.read = 0
        self._content = content

    def prefix(self, count: int) -> memoryview:
        assert self.read < count <= self.size
        self.read = min(self.size, count + 3)
        return memoryview(self._content)[: self.read]


def read(content: bytes) -> GgufHeader:
    return read_header("model.gguf", Bytes(content))


def written(folder: Path) -> bytes:
    """A valid file by the gguf package, with metadata of every kind."""
    path = folder / "valid.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.uint8", 7)
    writer.add_int64("a.int64", -(1 << 40))
    writer.add_float32("a.float32", 0.5)
    writer.add_float64("a.float64", 0.25)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "héllo")
    writer.add_array("a.strings", ["x", "", "🙂"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_tensor("one", np.arange(5, dtype=np.float32))
    writer.add_tensor("two", np.arange(12, dtype=np.float16).reshape(3, 4))
    packed = gguf.quants.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("three", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("gguf"))


def header_bytes(content: bytes) -> int:
    return min(entry.offset for entry in read(content).tensors.values())


def test_a_valid_file_is_read(valid: bytes) -> None:
    header = read(valid)
    assert header.metadata == {
        "general.architecture": "llama",
        "a.uint8": 7,
        "a.int64": -(1 << 40),
        "a.float32": 0.5,
        "a.float64": 0.25,
        "a.bool": True,
        "a.string": "héllo",
        "a.strings": ["x", "", "🙂"],
        "a.numbers": [1, -2, 3],
    }
    assert {name: entry.shape for name, entry in header.tensors.items()} == {
        "one": (5,),
        "two": (3, 4),
        "three": (2, 64),
    }
    assert header.tensors["three"].nbytes == 2 * 2 * 20


def test_tensors_are_read_from_where_the_header_says(valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "valid.gguf"
    path.write_bytes(valid)
    opened = GgufFile.open(path)
    assert opened.tensor("one").dequantize().tolist() == [[0, 1, 2, 3, 4]]
    assert opened.tensor("two").dequantize().tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert opened.tensor("three").dequantize().tolist() == [[1.0] * 64] * 2


def test_a_file_cut_off_anywhere_is_refused(valid: bytes) -> None:
    end = max(entry.offset + entry.nbytes for entry in read(valid).tensors.values())
    for length in range(end):
        with pytest.raises(MalformedFile):
            read(valid[:length])


def test_a_file_cut_off_on_disk_is_refused(valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    for length in (0, 3, 20, 100, header_bytes(valid), len(valid) - 40):
        path.write_bytes(valid[:length])
        with pytest.raises(MalformedFile):
            GgufFile.open(path)


def test_a_header_byte_of_any_other_value_is_refused_or_harmless(valid: bytes) -> None:
    changed = bytearray(valid)
    for position in range(header_bytes(valid)):
        for value in (0, 1, 0x7F, 0x80, 0xFF, valid[position] ^ 1, valid[position] ^ 0x20):
            changed[position] = value
            _is_refused_or_sound(bytes(changed))
        changed[position] = valid[position]


@given(data=st.data())
def test_several_changed_header_bytes_are_refused_or_harmless(valid: bytes, data: st.DataObject) -> None:
    positions = st.integers(0, header_bytes(valid) - 1)
    changed = bytearray(valid)
    for position, value in data.draw(st.lists(st.tuples(positions, st.integers(0, 255)), max_size=6)):
        changed[position] = value
    _is_refused_or_sound(bytes(changed))


@given(content=st.binary(max_size=400))
@example(content=b"")
def test_any_bytes_after_the_magic_are_refused_or_sound(content: bytes) -> None:
    _is_refused_or_sound(b"GGUF\x03\0\0\0" + content)


def _is_refused_or_sound(content: bytes) -> None:
    try:
        header = read(content)
    except WeightsError:
        return
    for tensor in header.tensors.values():
        assert 0 <= tensor.offset <= tensor.offset + tensor.nbytes <= len(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"PK\x03\x04" + b"\0" * 60, "starts with", id="not-gguf"),
        pytest.param(file_of(num_entries=1 << 60), "metadata keys is", id="entries-2^60"),
        pytest.param(file_of(num_tensors=1 << 60), "number of tensors is", id="tensors-2^60"),
        pytest.param(file_of(num_entries=100_000, data=b""), "and 0 are left", id="entries-that-are-not-there"),
        pytest.param(file_of(num_tensors=100_000, data=b""), "and 0 are left", id="tensors-that-are-not-there"),
        pytest.param(file_of(entries=[struct.pack("<Q", 1 << 30)]), "1073741824", id="key-of-1-GiB"),
        pytest.param(
            file_of(entries=[entry("k", STRING, struct.pack("<Q", 1 << 30))]), "1073741824", id="string-of-1-GiB"
        ),
        pytest.param(
            file_of(entries=[entry("k", STRING, struct.pack("<Q", (1 << 64) - 1))]), "needs", id="string-of-2^64"
        ),
        pytest.param(file_of(entries=[entry("k", STRING, text(b"\xff\xfe"))]), "UTF-8", id="string-not-utf-8"),
        pytest.param(file_of(entries=[entry("k", 99, b"")]), "unknown type 99", id="unknown-value-type"),
        pytest.param(
            file_of(entries=[entry("k", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "array of arrays", id="nested-array"
        ),
        pytest.param(
            file_of(entries=[entry("k", ARRAY, struct.pack("<IQ", UINT64, 1 << 61))]), "needs", id="array-of-2^61"
        ),
        pytest.param(
            file_of(entries=[entry("k", ARRAY, struct.pack("<IQ", STRING, 1 << 40))]), "claims", id="strings-2^40"
        ),
        pytest.param(
            file_of(
                entries=[entry("k", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + struct.pack("<Q", 1 << 62))]
            ),
            "item 1 of 'k'",
            id="string-in-array-of-2^62",
        ),
        pytest.param(
            file_of(entries=[entry("k", ARRAY, struct.pack("<IQ", STRING, 1) + text(b"\xc3"))]),
            "UTF-8",
            id="string-in-array-not-utf-8",
        ),
        pytest.param(file_of(entries=[entry("k", UINT32, b"\0" * 4)] * 2), "'k' stands twice", id="key-twice"),
        *(
            pytest.param(
                file_of(entries=[entry("general.alignment", UINT32, struct.pack("<I", value))]),
                f"general.alignment is {value}",
                id=f"alignment-{value}",
            )
            for value in (0, 3, 48, 1 << 30)
        ),
        pytest.param(
            file_of(entries=[entry("general.alignment", STRING, text("32"))]), "'32'", id="alignment-is-a-string"
        ),
        pytest.param(file_of(entries=[entry("general.alignment", BOOL, b"\1")]), "True", id="alignment-is-a-bool"),
        pytest.param(file_of(infos=[info("t", [1] * 5)]), "dimensions of tensor 't' is 5", id="five-dimensions"),
        pytest.param(file_of(infos=[info("t", [])]), "shape", id="no-dimensions"),
        pytest.param(file_of(infos=[info("t", [4, 0])]), "shape", id="empty-tensor"),
        pytest.param(file_of(infos=[info("t", [1 << 32, 1 << 32])]), "truncated", id="product-2^64"),
        pytest.param(file_of(infos=[info("t", [1 << 62])]), "truncated", id="bytes-2^64"),
        pytest.param(file_of(infos=[info("t", [(1 << 64) - 1] * 4)]), "truncated", id="product-2^256"),
        pytest.param(file_of(infos=[info("t", [33], kind=3)]), "multiple of 32", id="part-of-a-block"),
        pytest.param(file_of(infos=[info("t", [4]), info("t", [4], offset=32)]), "'t' stands twice", id="tensor-twice"),
        pytest.param(file_of(infos=[info("t", [4], offset=4)]), "not a multiple of 32", id="offset-unaligned"),
        pytest.param(file_of(infos=[info("t", [4], offset=1 << 63)]), "truncated", id="offset-outside"),
        pytest.param(file_of(infos=[info("t", [4], offset=256)]), "truncated", id="offset-at-the-end"),
        pytest.param(
            file_of(infos=[info("a", [16]), info("b", [4], offset=32)]), "'a' and 'b' overlap", id="overlapping"
        ),
        pytest.param(file_of(infos=[info("a", [4]), info("b", [4])]), "overlap", id="at-the-same-place"),
        pytest.param(file_of(infos=[text(b"\xff") + info("t", [4])[9:]]), "UTF-8", id="name-not-utf-8"),
    ],
)
def test_a_lying_header_is_malformed(content: bytes, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFile, match=message) as caught:
            read(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith("model.gguf: malformed GGUF: ")
    assert peak < 4 << 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *(pytest.param(file_of(magic=magic), "legacy", id=magic.decode()) for magic in (b"lmgg", b"fmgg", b"tjgg")),
        pytest.param(file_of(version=1), "version 1", id="version-1"),
        pytest.param(file_of(version=4), "version 4", id="version-4"),
        pytest.param(b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian", id="big-endian"),
        pytest.param(file_of(infos=[info("t", [4], kind=4)]), "unknown type 4", id="removed-tensor-type"),
        pytest.param(file_of(infos=[info("t", [4], kind=9999)]), "unknown type 9999", id="unknown-tensor-type"),
    ],
)
def test_a_file_of_another_kind_is_unsupported(content: bytes, message: str) -> None:
    with pytest.raises(UnsupportedFile, match=message):
        read(content)


def test_version_2_and_another_alignment_are_read() -> None:
    content = file_of(
        version=2,
        alignment=64,
        entries=[entry("general.alignment", UINT32, struct.pack("<I", 64))],
        infos=[info("a", [4]), info("b", [4], offset=64)],
    )
    tensors = read(content).tensors
    assert tensors["a"].offset % 64 == 0
    assert tensors["b"].offset == tensors["a"].offset + 64


def test_a_file_without_tensors_is_sound() -> None:
    assert read(file_of()).tensors == {}


def test_what_is_not_a_file_is_missing(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (tmp_path / "nothing.gguf", tmp_path, pipe, loop, tmp_path / ("x" * 300)):
        with pytest.raises(FileMissing):
            GgufFile.open(path)


def test_a_file_that_shrinks_after_opening_has_changed(valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(valid)
    opened = GgufFile.open(path)
    path.write_bytes(valid[: opened.entries["three"].offset + 3])
    with pytest.raises(FileChanged, match="'three' is cut off"):
        opened.tensor("three")


def test_a_file_that_is_written_to_after_opening_has_changed(valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(valid)
    opened = GgufFile.open(path)
    kept = opened.tensor("three")
    kept.release()
    path.write_bytes(valid)
    os.utime(path, ns=(1, 1))
    with pytest.raises(FileChanged, match="'one' cannot be trusted"):
        opened.tensor("one")
    with pytest.raises(FileChanged, match="'three' cannot be trusted"):
        kept.dequantize()


def test_a_file_that_is_replaced_or_deleted_after_opening_is_still_read(valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(valid)
    opened = GgufFile.open(path)
    before = opened.tensor("three").data
    (tmp_path / "new.gguf").write_bytes(b"something else")
    (tmp_path / "new.gguf").rename(path)
    assert opened.tensor("three").data.equal(before)
    path.unlink()
    assert opened.tensor("three").data.equal(before)


def test_a_file_is_closed_once_nothing_refers_to_it(valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(valid)
    opened = GgufFile.open(path)
    kept = opened.tensor("three")
    del opened
    assert open_files(path) == 1
    kept.release()
    assert kept.data.shape == (2, 40)
    del kept
    assert open_files(path) == 0


def open_files(path: Path) -> int:
    names = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return names.count(str(path))
