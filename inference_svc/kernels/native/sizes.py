"""How much memory the native layout of a weight takes: reckoned with before there is a weight to lay out.

Rows lie in tiles of 16, columns in steps of 32: a byte or half a byte for each value, and 16 bits for each group of
values with a scale of its own, twice if it has a minimum too. See `coding_of` and `pack` in quantized.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gguf import GGMLQuantizationType

TILE_ROWS, STEP_COLUMNS = 16, 32
ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class _Coding:
    bits: int  # of a value
    group: int  # values with one scale
    has_minimum: bool


CODINGS: Mapping[str, _Coding] = MappingProxyType(
    {
        "Q4_0": _Coding(4, 32, False),
        "Q4_1": _Coding(4, 32, True),
        "Q5_0": _Coding(8, 32, False),
        "Q5_1": _Coding(8, 32, True),
        "Q8_0": _Coding(8, 32, False),
        "Q2_K": _Coding(4, 16, True),
        "Q3_K": _Coding(4, 16, False),
        "Q4_K": _Coding(4, 32, True),
        "Q5_K": _Coding(8, 32, True),
        "Q6_K": _Coding(8, 16, False),
        "IQ4_NL": _Coding(8, 32, False),
        "IQ4_XS": _Coding(8, 32, False),
    }
)


def packed_bytes(quantization: GGMLQuantizationType, rows: int, columns: int) -> int | None:
    """Bytes of a weight [rows, columns] in the native layout; None: it stays as it is in the file."""
    coding = CODINGS.get(quantization.name)
    if coding is None:
        return None
    scales = TILE_ROWS * (STEP_COLUMNS // coding.group) * 2 * (2 if coding.has_minimum else 1)
    step = TILE_ROWS * STEP_COLUMNS * coding.bits // 8 + scales
    total = -(-rows // TILE_ROWS) * (columns // STEP_COLUMNS) * step
    return -(-total // ALIGNMENT) * ALIGNMENT
