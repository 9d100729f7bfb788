"""Split GGUF files: how llama.cpp's `gguf-split` names the parts, and whether parts belong together.

Part n of m is called NAME-0000n-of-0000m.gguf. Each says `split.no` (from 0), `split.count` and
`split.tensors.count` (of all parts); the first has the metadata of the model. Source: `llama_split_path` and
`tools/gguf-split` of llama.cpp.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_svc.weights.errors import FileMissing, MalformedFile

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")


@dataclass(frozen=True, slots=True)
class SplitName:
    """What the name of a part says."""

    stem: str
    number: int  # from 1
    count: int

    @classmethod
    def of(cls, path: Path) -> SplitName | None:
        """None if the file is not named as a part."""
        match = _NAME.fullmatch(path.name)
        if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
            return None
        return cls(match["stem"], int(match["number"]), int(match["count"]))

    def part(self, number: int) -> str:
        """The name of another part of the same file."""
        return f"{self.stem}-{number:05}-of-{self.count:05}.gguf"


def part_paths(path: Path, name: SplitName) -> list[Path]:
    """All parts, in order.

    Raises:
        FileMissing: the message names those that are not there.
    """
    paths = [path.with_name(name.part(number)) for number in range(1, name.count + 1)]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise FileMissing(
            str(path), f"{len(missing)} of its {name.count} parts are not beside it: {', '.join(missing[:5])}{more}"
        )
    return paths


def check_parts(paths: Sequence[Path], metadata: Sequence[Mapping[str, object]], num_tensors: Sequence[int]) -> None:
    """Raise MalformedFile unless every part is the one that its name says, and together they are complete."""
    for number, (path, keys) in enumerate(zip(paths, metadata, strict=True)):
        for key, expected in (("split.no", number), ("split.count", len(paths))):
            value = keys.get(key)
            if type(value) is not int or value != expected:
                raise MalformedFile(
                    str(path), f"by its name {key} is {expected}, the file says {reprlib.repr(value)}: is it renamed?"
                )
    total = metadata[0].get("split.tensors.count")
    if total != sum(num_tensors):
        raise MalformedFile(
            str(paths[0]), f"split.tensors.count is {reprlib.repr(total)}, the parts hold {sum(num_tensors)} tensors"
        )
