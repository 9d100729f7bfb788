"""Rows of any GGUF type: random bits with scales like those of weights, for the types that nobody here quantizes to."""

from __future__ import annotations

import gguf.quants
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

KIND = GGMLQuantizationType
# Where a block has scales of float16, and how large each is beside the first: minima take away what is left of a mean.
HALVES: dict[GGMLQuantizationType, dict[int, float]] = {
    KIND.Q4_0: {0: 1.0},
    KIND.Q4_1: {0: 1.0, 2: -7.5},
    KIND.Q5_0: {0: 1.0},
    KIND.Q5_1: {0: 1.0, 2: -15.5},
    KIND.Q8_0: {0: 1.0},
    KIND.Q2_K: {80: 1.0, 82: 1.5},
    KIND.Q3_K: {108: 1.0},
    KIND.Q4_K: {0: 1.0, 2: 7.5},
    KIND.Q5_K: {0: 1.0, 2: 15.5},
    KIND.Q6_K: {208: 1.0},
    KIND.IQ1_S: {0: 1.0},
    KIND.IQ2_XXS: {0: 1.0},
    KIND.IQ2_XS: {0: 1.0},
    KIND.IQ2_S: {0: 1.0},
    KIND.IQ3_XXS: {0: 1.0},
    KIND.IQ3_S: {0: 1.0},
    KIND.IQ4_NL: {0: 1.0},
    KIND.IQ4_XS: {0: 1.0},
    KIND.TQ1_0: {52: 1.0},
    KIND.TQ2_0: {64: 1.0},
}
# All packed types that the gguf package can unpack.
PACKED_TYPES = (*HALVES, KIND.IQ1_M, KIND.MXFP4, KIND.NVFP4)


def random_rows(
    kind: GGMLQuantizationType, rows: int, columns: int, *, scale: float = 1e-3, seed: int = 0
) -> NDArray[np.uint8]:
    """uint8 [rows, row_bytes]: every bit pattern of the values, with scales from half to twice of `scale`."""
    block, width = GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (rows, columns // block, width), dtype=np.uint8)
    scales = scale * 2.0 ** random.uniform(-1, 1, (rows, columns // block, 4)).astype(np.float32)
    if kind in HALVES:
        for offset, factor in HALVES[kind].items():
            data[:, :, offset : offset + 2] = (scales[:, :, :1] * factor).astype(np.float16).view(np.uint8)
    elif kind is KIND.IQ1_M:  # sixteen bits of scale, four in the high bits of each of the last four words
        bits = scales[:, :, 0].astype(np.float16).view(np.uint16)
        words = data[:, :, 48:56].copy().view("<u2") & 0x0FFF
        data[:, :, 48:56] = (words | np.stack([(bits << s) & 0xF000 for s in (12, 8, 4, 0)], -1)).view(np.uint8)
    elif kind is KIND.MXFP4:  # a power of two
        data[:, :, 0] = 127 + np.rint(np.log2(scales[:, :, 0]))
    else:
        assert kind is KIND.NVFP4  # eight bits with an exponent, one for sixteen values
        data[:, :, :4] = gguf.quants.NVFP4.fp32_to_ue4m3(scales)
    return data.reshape(rows, -1)


def rows_of_size(
    kind: GGMLQuantizationType, rows: int, columns: int, size: float, *, seed: int = 0
) -> NDArray[np.uint8]:
    """The same, with values whose standard deviation is about `size`."""
    unit = gguf.quants.dequantize(random_rows(kind, 8, columns, scale=1.0), kind).std()
    return random_rows(kind, rows, columns, scale=size / float(unit), seed=seed)
