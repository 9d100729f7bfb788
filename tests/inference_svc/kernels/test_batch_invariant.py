"""In batch-invariant mode a row of an operation does not depend on how many rows there are."""

from __future__ import annotations

import pytest
import torch

from inference_svc.kernels.reference import ReferenceKernels


@pytest.mark.parametrize("width", [7, 48, 100, 1536])
def test_the_activation_of_a_row_is_the_same_in_any_company(width: int) -> None:
    kernels = ReferenceKernels(batch_invariant=True)
    gate = torch.randn(33, width, generator=torch.Generator().manual_seed(1)) * 5
    together = kernels.activate("silu", gate)
    for row in range(33):
        assert torch.equal(kernels.activate("silu", gate[row : row + 1])[0], together[row])
