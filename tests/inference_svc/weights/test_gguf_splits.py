"""Split GGUF files: all parts make one model, and parts that do not belong together are named."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_svc.weights.errors import FileChanged, FileMissing, MalformedFile
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.gguf_splits import SplitName, check_parts

VALUES = {f"blk.{index}.weight": np.full((2, 4), index, np.float32) for index in range(5)}


def part_of(folder: Path, number: int, count: int = 3) -> Path:
    return folder / f"model-{number:05}-of-{count:05}.gguf"


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A folder with three parts that the gguf package wrote, of two tensors each but the last."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=2)
    writer.add_block_count(5)
    for name, value in VALUES.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert {path.name for path in tmp_path.iterdir()} == {part_of(tmp_path, number).name for number in (1, 2, 3)}
    return tmp_path


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_part_opens_the_whole_model(split: Path, number: int) -> None:
    opened = GgufFile.open(part_of(split, number))
    assert opened.path == part_of(split, 1)
    assert opened.metadata["llama.block_count"] == 5
    assert opened.entries.keys() == VALUES.keys()
    for name, value in VALUES.items():
        assert np.array_equal(opened.tensor(name).dequantize().numpy(), value)


def test_missing_parts_are_named(split: Path) -> None:
    part_of(split, 1).unlink()
    part_of(split, 3).unlink()
    with pytest.raises(FileMissing, match=r"2 of its 3 parts .*: model-00001-of-00003.gguf, model-00003-of-00003.gguf"):
        GgufFile.open(part_of(split, 2))


def test_a_part_under_another_name_says_how_it_must_be_called(split: Path) -> None:
    renamed = split / "llama.gguf"
    part_of(split, 1).rename(renamed)
    with pytest.raises(MalformedFile, match=r"one of 3 parts, .* NAME-00001-of-00002\.gguf"):
        GgufFile.open(renamed)


@pytest.mark.parametrize(("copied", "over"), [(1, 2), (2, 1), (2, 3)])
def test_a_part_in_the_place_of_another_is_named(split: Path, copied: int, over: int) -> None:
    shutil.copy(part_of(split, copied), part_of(split, over))
    message = rf"model-0000{over}-of.*by its name split\.no is {over - 1}, the file says {copied - 1}"
    with pytest.raises(MalformedFile, match=message):
        GgufFile.open(part_of(split, 1))


def test_a_part_of_a_split_into_other_pieces_is_named(split: Path) -> None:
    for number in (1, 2):
        part_of(split, number).rename(part_of(split, number, count=2))
    with pytest.raises(MalformedFile, match=r"split\.count is 2, the file says 3"):
        GgufFile.open(part_of(split, 1, count=2))


def test_a_truncated_part_is_named(split: Path) -> None:
    last = part_of(split, 3)
    last.write_bytes(last.read_bytes()[:-33])
    with pytest.raises(MalformedFile, match=r"model-00003-of-00003\.gguf: malformed GGUF: .*truncated"):
        GgufFile.open(part_of(split, 1))


def test_a_part_that_changes_later_is_named(split: Path) -> None:
    opened = GgufFile.open(part_of(split, 1))
    part_of(split, 2).write_bytes(b"GGUF")
    assert opened.tensor("blk.0.weight").dequantize().sum() == 0
    with pytest.raises(FileChanged, match=r"model-00002-of-00003\.gguf: tensor 'blk\.2\.weight' is cut off"):
        opened.tensor("blk.2.weight")


def rewritten(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def test_a_tensor_that_stands_in_two_parts_is_named_with_both(split: Path) -> None:
    rewritten(part_of(split, 2), lambda content: content.replace(b"blk.2.weight", b"blk.1.weight"))
    with pytest.raises(MalformedFile, match=r"model-00002.*'blk\.1\.weight' stands in model-00001-of-00003\.gguf too"):
        GgufFile.open(part_of(split, 1))


def test_parts_that_hold_fewer_tensors_than_the_first_says_are_refused(split: Path) -> None:
    key = b"split.tensors.count" + struct.pack("<Ii", gguf.GGUFValueType.INT32, 5)
    rewritten(part_of(split, 1), lambda content: content.replace(key, key[:-4] + struct.pack("<i", 6)))
    with pytest.raises(MalformedFile, match=r"split\.tensors\.count is 6, the parts hold 5 tensors"):
        GgufFile.open(part_of(split, 1))


def test_one_part_of_one_is_a_file_like_any_other(tmp_path: Path) -> None:
    path = part_of(tmp_path, 1, count=1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("one", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert [*GgufFile.open(path).entries] == ["one"]


@pytest.mark.parametrize(
    "name",
    [
        "model.gguf",
        "model-00001-of-00003.bin",
        "-00001-of-00003.gguf",
        "model-1-of-3.gguf",
        "model-00000-of-00003.gguf",
        "model-00004-of-00003.gguf",
        "model-00001-of-00003.gguf.part",
    ],
)
def test_other_names_are_no_parts(name: str) -> None:
    assert SplitName.of(Path(name)) is None


@given(st.text(min_size=1).filter(lambda text: "/" not in text and "\0" not in text), st.integers(1, 99_999), st.data())
def test_the_name_of_a_part_leads_to_all_others(stem: str, count: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, count))
    name = SplitName(stem, number, count)
    other = data.draw(st.integers(1, count))
    found = SplitName.of(Path("folder") / name.part(other))
    # A line break is no part of a file name that anybody means: the pattern leaves such names alone.
    assert found == (None if "\n" in stem else SplitName(stem, other, count))


VALUES_OF_ANY_KIND = st.one_of(st.integers(-2, 4), st.booleans(), st.text(max_size=3), st.floats(0, 4), st.none())


@given(
    st.lists(
        st.fixed_dictionaries(
            {}, optional={"split.no": VALUES_OF_ANY_KIND, "split.count": VALUES_OF_ANY_KIND, "other": st.just(1)}
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 6),
)
def test_only_parts_that_say_what_their_names_say_are_accepted(parts: Sequence[dict[str, object]], total: int) -> None:
    paths = [part_of(Path(), number + 1, len(parts)) for number in range(len(parts))]
    parts[0]["split.tensors.count"] = total
    fits = [
        (part.get("split.no"), part.get("split.count")) == (number, len(parts))
        and type(part["split.no"]) is type(part["split.count"]) is int
        for number, part in enumerate(parts)
    ]
    if all(fits) and total == 2 * len(parts):
        check_parts(paths, parts, [2] * len(parts))
    else:
        with pytest.raises(MalformedFile):
            check_parts(paths, parts, [2] * len(parts))
