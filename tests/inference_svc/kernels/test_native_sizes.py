"""What is reckoned for the native layout is what the compiled takes."""

from __future__ import annotations

import ctypes

import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from inference_svc.kernels.native.compiled import CompiledCode
from inference_svc.kernels.native.compiler import NativeUnavailable
from inference_svc.kernels.native.sizes import packed_bytes
from inference_svc.weights.quantization import QuantizedTensor

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


@pytest.fixture(scope="module")
def compiled() -> CompiledCode:
    try:
        return CompiledCode(1, exact=False, batch_invariant=True)
    except NativeUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (16, 256), (33, 512), (100, 1280)])
def test_the_library_takes_what_was_reckoned(compiled: CompiledCode, name: str, rows: int, columns: int) -> None:
    kind = GGMLQuantizationType[name]
    block, block_bytes = GGML_QUANT_SIZES[kind]
    weight = QuantizedTensor(
        torch.zeros((rows, columns // block * block_bytes), dtype=torch.uint8), kind, (rows, columns)
    )
    taken = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(("lx_packed_bytes", compiled.code))
    before = taken(compiled.pointer)
    assert compiled.packed("w", weight) is not None
    assert taken(compiled.pointer) - before == packed_bytes(kind, rows, columns)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "IQ3_S"])
def test_what_stays_as_it_is_in_the_file_takes_nothing_more(name: str) -> None:
    assert packed_bytes(GGMLQuantizationType[name], 16, 256) is None
