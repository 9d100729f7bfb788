"""Records the rows that llama.cpp's quantizers leave furthest from what they were made of, in every type.

    python -m tests.inference_svc.adapters.record_llamacpp_rows LIBGGML_BASE MODEL

LIBGGML_BASE is llama.cpp's library of that name, MODEL the real model's file. Writes `llamacpp_rows.npz` beside this
file, and prints the median and the largest errors: of the model's weights, packed plainly and with columns weighed by
importances of three orders of magnitude, and the same of normal random numbers.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import gguf.quants
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from tests.inference_svc.adapters.original_rows import original_rows

RECORDED = Path(__file__).with_name("llamacpp_rows.npz")
NAMES = "Q8_0 Q6_K Q5_K Q5_1 Q5_0 Q4_K Q4_1 Q4_0 IQ4_NL IQ4_XS MXFP4 NVFP4 Q3_K IQ3_S IQ3_XXS Q2_K IQ2_S IQ2_XS IQ2_XXS"
TYPES = [GGMLQuantizationType[name] for name in f"{NAMES} IQ1_M IQ1_S".split()]
NEED_IMPORTANCES = {GGMLQuantizationType[name] for name in ("IQ2_XXS", "IQ2_XS", "IQ1_S")}
COLUMNS = 512
ROWS = 512  # of each layer
WORST = 3  # so many rows of the model are recorded of each way to pack, and one random row

Floats = NDArray[np.float32]


def main() -> None:
    """Record."""
    library = ctypes.CDLL(sys.argv[1])
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    layers = original_rows(Path(sys.argv[2]), ROWS).values()
    real = np.concatenate([layer[:, :COLUMNS].numpy() for layer in layers]).astype(np.float32)
    random = np.random.default_rng(0)
    normal = random.standard_normal((ROWS, COLUMNS), dtype=np.float32)
    importances = np.exp(1.5 * random.standard_normal(COLUMNS)).astype(np.float32)
    recorded: dict[str, NDArray[np.uint8]] = {}
    for kind in TYPES:
        chosen: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
        said = []
        for weighed in (None, importances) if kind not in NEED_IMPORTANCES else (importances,):
            for values, count in ((real, WORST), (normal, 1)):
                data = packed(library, kind, values, weighed)
                own = gguf.quants.dequantize(data, kind).reshape(values.shape)
                errors = np.linalg.norm(values - own, axis=1) / np.linalg.norm(own, axis=1)
                worst = np.argsort(errors)[-count:]
                copies = torch.from_numpy(values[worst]).bfloat16().view(torch.uint8).numpy()
                chosen.append((copies, data[worst]))
                said.append(f"{np.median(errors):.4f} {errors.max():.4f}")
        recorded[f"{kind.name} copies"] = np.concatenate([copies for copies, _ in chosen])
        recorded[f"{kind.name} packed"] = np.concatenate([data for _, data in chosen])
        sys.stdout.write(f"{kind.name:8} {'   '.join(said)}\n")
    np.savez_compressed(RECORDED, **recorded)  # type: ignore[arg-type]


def packed(
    library: ctypes.CDLL, kind: GGMLQuantizationType, values: Floats, weighed: Floats | None
) -> NDArray[np.uint8]:
    """uint8 [rows, row_bytes] of float32 [rows, columns], by llama.cpp."""
    values = np.ascontiguousarray(values)
    block, width = GGML_QUANT_SIZES[kind]
    data = np.zeros((len(values), COLUMNS // block * width), np.uint8)
    written = library.ggml_quantize_chunk(
        ctypes.c_int(kind),
        ctypes.c_void_p(values.ctypes.data),
        ctypes.c_void_p(data.ctypes.data),
        ctypes.c_int64(0),
        ctypes.c_int64(len(values)),
        ctypes.c_int64(COLUMNS),
        None if weighed is None else ctypes.c_void_p(weighed.ctypes.data),
    )
    assert written == data.nbytes
    return data


if __name__ == "__main__":
    main()
