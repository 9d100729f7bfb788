"""Computes a model definition at once, operation by operation, in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from inference_svc.adapters.bank import AdapterBank
from inference_svc.kernels.operations import Kernels
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, AttentionShape, ForwardBatch
from inference_svc.layers.experts import mixture_of_experts
from inference_svc.layers.linear import GatedExpert, Linear, adapted_linear
from inference_svc.layers.rotary import RotaryTable
from inference_svc.models.definition import ModelDefinition
from inference_svc.weights.quantization import QuantizedTensor


class EagerExecutor:
    """Runs a model by calling its definition for every pass; on any device."""

    separates_prompts = False

    def __init__(self, model: ModelDefinition, kernels: Kernels, dtype: torch.dtype) -> None:
        self.model = model
        self.kernels = kernels
        self.dtype = dtype
        self.cache_dtype = dtype

    @property
    def name(self) -> str:
        """What the start-up line says."""
        return self.kernels.name

    @property
    def batch_invariant(self) -> bool:
        """True if no row's arithmetic depends on the other rows."""
        return self.kernels.batch_invariant

    def prepare(self, bank: AdapterBank) -> AdapterBank:
        """The bank itself: it is used as it is."""
        return bank

    def hidden_states(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """Hidden states after the final norm [num_tokens, hidden_size]; writes keys and values to the cache."""
        return self.model.hidden_states(EagerForward(self.kernels, self.dtype, batch.adapters, batch, cache))

    def logits(self, hidden: Tensor, adapters: tuple[AdapterRows, ...]) -> Tensor:
        """[num_rows, hidden_size] -> float32 [num_rows, vocab_size]; adapters' rows count within these rows."""
        return self.model.logits(EagerForward(self.kernels, self.dtype, adapters), hidden).float()


class EagerForward:
    """One pass; see `Forward` for what each operation means."""

    def __init__(
        self,
        kernels: Kernels,
        dtype: torch.dtype,
        adapters: tuple[AdapterRows, ...],
        batch: ForwardBatch | None = None,
        cache: KVCache | None = None,
    ) -> None:
        """`batch` and `cache` are not needed for logits: they have no positions."""
        self._kernels = kernels
        self._dtype = dtype
        self._adapters = adapters
        self._batch = batch
        self._cache = cache
        self._rotations: dict[int, tuple[Tensor, Tensor]] = {}

    def embed(self, table: QuantizedTensor, scale: float = 1.0) -> Tensor:
        assert self._batch is not None
        x = table.dequantize_rows(self._batch.token_ids)
        return (x if scale == 1.0 else x * scale).to(self._dtype)

    def linear(self, x: Tensor, layer: Linear) -> Tensor:
        return adapted_linear(self._kernels, x, layer, self._adapters)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._kernels.rms_norm(x, weight, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        return self._kernels.layer_norm(x, weight, bias, eps)

    def split(self, x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        return torch.split(x, list(sizes), dim=1)

    def rotary(self, x: Tensor, table: RotaryTable, head_dim: int) -> Tensor:
        assert self._batch is not None
        if id(table) not in self._rotations:
            self._rotations[id(table)] = table.at(self._batch.positions, self._dtype)
        heads = x.reshape(x.shape[0], -1, head_dim)
        return self._kernels.rotary(heads, *self._rotations[id(table)]).flatten(1)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, layer: int, shape: AttentionShape) -> Tensor:
        assert self._batch is not None
        assert self._cache is not None
        heads = (q.shape[0], -1, shape.head_dim)
        self._kernels.write(self._cache, layer, self._batch.slots, k.reshape(heads), v.reshape(heads))
        return self._kernels.attention(q.reshape(heads), self._cache, layer, self._batch.segments, shape).flatten(1)

    def activate(self, kind: str, x: Tensor) -> Tensor:
        return self._kernels.activate(kind, x)

    def gated(self, kind: str, gate: Tensor, up: Tensor) -> Tensor:
        return self._kernels.gated(kind, gate, up)

    def experts(self, x: Tensor, scores: Tensor, experts: tuple[GatedExpert, ...], per_token: int, kind: str) -> Tensor:
        return mixture_of_experts(self._kernels, x, scores, experts, per_token, kind, self._adapters)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def softcap(self, x: Tensor, limit: float) -> Tensor:
        return limit * torch.tanh(x / limit)
