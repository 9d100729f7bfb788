"""A bank: the matrices of one LoRA adapter, or of all adapters of an X-LoRA mixture, side by side.

With A = cat(A_i) and B = cat(B_i * alpha_i / r_i), the sum over adapters i of B_i A_i (s_i x) alpha_i / r_i is
B ((A x) * s[expert_of_rank]): one pair of products whatever the number of adapters and their ranks, exact because A is
linear and s_i is one number a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LinearDelta:
    """What a bank adds to one linear layer."""

    a: Tensor  # [sum_rank, in_features]
    b: Tensor  # [out_features, sum_rank], with each adapter's scale (alpha / r) folded in
    expert_of_rank: Tensor  # int64 [sum_rank], which adapter a rank belongs to
    # float32 [out_features]: DoRA changes the base's own output by this factor less one (a bank of one adapter only).
    base_factor: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        tensors = (self.a, self.b, self.expert_of_rank, self.base_factor)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


@dataclass(frozen=True, slots=True, eq=False)
class AdapterBank:
    """The deltas of one or more adapters, by full module path (`model.layers.0.self_attn.q_proj`)."""

    digest: str  # names the content: orders banks, keys caches
    experts: tuple[str, ...]  # adapter names; one for a plain LoRA
    deltas: Mapping[str, LinearDelta]
    scaling_rows: Mapping[str, int]  # module path -> row of the classifier's layer axis; empty for a plain LoRA

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(delta.nbytes for delta in self.deltas.values())


@dataclass(frozen=True, slots=True)
class XLoraConfig:
    """The fields of `xlora_config.json` that change the maths (names and meaning as in the xlora package)."""

    hidden_size: int
    base_model_id: str
    layerwise_scalings: bool = False
    enable_relu_and_dropout: bool = True
    xlora_depth: int = 1
    xlora_size: int = 2048
    xlora_dropout_p: float = 0.2
    use_bias: bool = True
    enable_softmax: bool = True
    enable_softmax_topk: bool = False
    softmax_temperature: float = 1.0
    scaling_pass_value: float = 0.0
    global_scaling_weight: float = 1.0
    top_k_lora: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """The X-LoRA classifier: hidden states after the final norm -> scalings."""

    config: XLoraConfig
    num_layers: int  # rows of the layer axis
    num_experts: int
    weights: tuple[Tensor, ...]  # inner layers first, `last` at the end; [out_features, in_features], float32
    biases: tuple[Tensor | None, ...]  # [out_features], float32

    def scalings(self, hidden: Tensor) -> Tensor:
        """[num_tokens, hidden_size] float32 -> [num_tokens, num_layers, num_experts], without dropout.

        Source: `xlora_classifier.py` of the xlora package, `XLoraClassifier.forward` of PEFT; top-k keeps the largest
        values and does not renormalise.
        """
        config = self.config
        x = hidden
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.nn.functional.linear(x, weight, bias)
            if config.enable_relu_and_dropout and index < len(self.weights) - 1:
                x = torch.relu(x)
        if config.layerwise_scalings:
            logits = x.reshape(-1, self.num_layers, self.num_experts)
        else:
            logits = x.unsqueeze(1).expand(-1, self.num_layers, -1)
        scalings = torch.softmax(logits / config.softmax_temperature, dim=-1) if config.enable_softmax else logits
        if config.top_k_lora is not None:
            kept = torch.topk(scalings, config.top_k_lora, dim=-1).indices
            mask = torch.zeros_like(scalings).scatter_(-1, kept, 1.0)
            scalings = scalings * mask
            if config.enable_softmax_topk:
                scalings = torch.softmax(scalings.masked_fill(mask == 0, float("-inf")), dim=-1)
        return scalings.contiguous()

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(t.numel() * t.element_size() for t in (*self.weights, *self.biases) if t is not None)
