"""A mixture of experts (arXiv 2401.04088): each row goes through a few of many feed-forward blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from inference_svc.kernels.operations import Kernels
from inference_svc.layers.batch import AdapterRows
from inference_svc.layers.linear import GatedExpert, adapted_linear


def mixture_of_experts(
    kernels: Kernels,
    x: Tensor,
    scores: Tensor,
    experts: tuple[GatedExpert, ...],
    per_token: int,
    kind: str,
    adapters: tuple[AdapterRows, ...],
) -> Tensor:
    """Rows [num_tokens, hidden_size] by scores [num_tokens, len(experts)]; only experts that a row chose are computed.

    The experts of a row are added in their own order, so that a row's sum never depends on the rest of the batch.
    """
    kept, chosen = torch.topk(torch.softmax(scores.float(), dim=-1), per_token, dim=-1)
    weights = (kept / kept.sum(dim=-1, keepdim=True)).to(x.dtype)
    output = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        rows, places = (chosen == number).nonzero(as_tuple=True)
        if not len(rows):
            continue
        paths = (expert.gate.path, expert.up.path, expert.down.path)
        concerned = tuple(part for a in adapters if (part := _among(a, rows, len(x), paths)) is not None)
        own = x.index_select(0, rows)
        gate, up = (adapted_linear(kernels, own, layer, concerned) for layer in (expert.gate, expert.up))
        down = adapted_linear(kernels, kernels.gated(kind, gate, up), expert.down, concerned)
        output.index_add_(0, rows, down * weights[rows, places, None])
    return output


def _among(adapter: AdapterRows, rows: Tensor, num_tokens: int, paths: tuple[str, ...]) -> AdapterRows | None:
    """What an adapter changes of some rows, counted among these; None: nothing."""
    if not any(path in adapter.bank.deltas for path in paths):
        return None
    place = torch.full((num_tokens,), -1, dtype=torch.int64, device=rows.device)
    place[rows] = torch.arange(len(rows), device=rows.device)
    places = place.index_select(0, adapter.rows)
    kept = (places >= 0).nonzero()[:, 0]
    if not len(kept):
        return None
    return AdapterRows(adapter.bank, places[kept], adapter.scalings[kept])
