"""Compiles every kernel for a GPU that need not be there: `python -m ... CAPABILITY`. Prints a line for each.

Run in a process of its own: in one with TRITON_INTERPRET kernels are not compiled but interpreted.
"""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from inference_svc.kernels.triton import attention, deltas, elementwise, products

# Types of arguments by name, for activations in bfloat16; what is not here is an int32.
TYPES = {
    **dict.fromkeys(("x", "y", "output", "queries", "keys", "values", "gate", "up", "cos", "sin"), "*bf16"),
    **dict.fromkeys(("cached_keys", "cached_values"), "*bf16"),
    **dict.fromkeys(("scales", "minima"), "*fp16"),
    **dict.fromkeys(("low", "parts", "peaks", "weights", "weight"), "*fp32"),
    **dict.fromkeys(("rows", "pair_tile", "pair_bank", "first_pair", "places", "tiles", "blocks"), "*i32"),
    **dict.fromkeys(("descriptors", "slots"), "*i64"),
    **dict.fromkeys(("scale", "softcap", "eps"), "fp32"),
}
CODES = {"COLUMNS": 64, "GROUP": 32, "ZERO": 0, "HAS_MINIMUM": True, "STEPS": 4}
HEADS = {"GROUP": 4, "HEAD_DIM": 64, "DIM": 64, "HEADS": 32}
ATTENTION = {**HEADS, "BLOCK_SIZE": 16, "BLOCK": 64, "HAS_SOFTCAP": True, "HAS_WINDOW": True}
KERNELS: list[tuple[Any, dict[str, object]]] = [
    (products._few_rows, {**CODES, "ROWS": 4, "COLUMNS": 16, "BITS": 4}),
    (products._many_rows, {**CODES, "ROWS": 64, "BITS": 4}),
    (products._many_rows, {**CODES, "ROWS": 16, "BITS": 8, "GROUP": 16, "HAS_MINIMUM": False}),
    (deltas._multiply_a, {"BLOCK": 128}),
    (deltas._multiply_b, {"COLUMNS": 64}),
    (attention._attend, {**ATTENTION, "ROWS": 16, "SPLIT": 256}),
    (attention._attend, {**ATTENTION, "ROWS": 64, "SPLIT": 0}),
    (attention._join, {**HEADS, "ROWS": 16, "SPLIT": 256}),
    (elementwise._rms_norm, {"BLOCK": 4096}),
    (elementwise._rotary, {"BLOCK": 128}),
    (elementwise._gated, {"KIND": 1, "BLOCK": 1024}),
    (elementwise._gated, {"KIND": 2, "BLOCK": 1024}),
    (elementwise._write_cache, {"BLOCK": 1024}),
]


def main(capability: int) -> None:
    for kernel, constants in KERNELS:
        types = {name: TYPES.get(name, "i32") for name in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
        if constants.get("BITS") is not None:
            types["codes"] = "*u8" if constants["BITS"] == 4 else "*i8"
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        compiled = triton.compile(
            ASTSource(fn=kernel, signature=types, constexprs=places, attrs={}), target=GPUTarget("cuda", capability, 32)
        )
        sys.stdout.write(f"{kernel.__name__} {len(compiled.asm['cubin'])} bytes\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
