"""Where tests of the Triton kernels run, and what rounding they are allowed."""

from __future__ import annotations

import torch

# On CUDA where there is a GPU; else in Triton's interpreter, which tests/conftest.py turns on.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# What rounding to the type moves a number by, at most, as a part of it; and a little for sums in float32 before. In
# float32 itself sums are all there is: some twenty roundings are allowed. The interpreter cuts bfloat16 off where
# hardware rounds, which is twice as much.
ROUNDING = {
    torch.float32: 2e-6,
    torch.bfloat16: 1.02 * 2.0 ** (-8 if DEVICE.type == "cuda" else -7),
    torch.float16: 1.02 * 2.0**-11,
}
