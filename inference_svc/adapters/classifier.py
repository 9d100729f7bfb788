"""What an X-LoRA mixture does beside its adapters: its configuration, and the classifier that weighs them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class XLoraConfig:
    """The fields of an X-LoRA's configuration that change the maths (names and meaning as in the xlora package)."""

    hidden_size: int
    base_model_id: str
    layerwise_scalings: bool = False
    enable_relu_and_dropout: bool = True  # PEFT: always
    xlora_depth: int = 1
    xlora_size: int = 2048
    xlora_dropout_p: float = 0.2  # of training; nothing is ever dropped here
    use_bias: bool = True  # PEFT: always
    enable_softmax: bool = True
    enable_softmax_topk: bool = False
    softmax_temperature: float = 1.0
    scaling_pass_value: float = 0.0  # null in the file is 1 / number of adapters
    global_scaling_weight: float = 1.0
    top_k_lora: int | None = None


@dataclass(frozen=True, slots=True)
class XLoraOverrides:
    """What a request may change of a mixture; None keeps what the mixture's configuration says."""

    top_k_lora: int | None = None
    softmax_temperature: float | None = None
    global_scaling_weight: float | None = None

    def given(self) -> dict[str, float]:
        """Those that are set, by name."""
        names = ("top_k_lora", "softmax_temperature", "global_scaling_weight")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """The X-LoRA classifier: hidden states after the final norm -> scalings."""

    config: XLoraConfig
    num_layers: int  # rows of the layer axis
    num_experts: int
    weights: tuple[Tensor, ...]  # inner layers first, `last` at the end; [out_features, in_features], float32
    biases: tuple[Tensor | None, ...]  # [out_features], float32
    nbytes: int = field(init=False)  # of the tensors

    def __post_init__(self) -> None:
        tensors = (*self.weights, *self.biases)
        object.__setattr__(self, "nbytes", sum(t.numel() * t.element_size() for t in tensors if t is not None))

    def with_overrides(self, overrides: XLoraOverrides) -> Classifier:
        """The same weights under another configuration."""
        given = overrides.given()
        return replace(self, config=replace(self.config, **given)) if given else self  # type: ignore[arg-type]

    def scalings(self, hidden: Tensor) -> Tensor:
        """[num_tokens, hidden_size] float32 -> [num_tokens, num_layers, num_experts], without dropout.

        Source: `xlora_classifier.py` of the xlora package, `XLoraClassifier.forward` of PEFT.
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
        return self._selected(scalings).contiguous()

    def scaling_pass_scalings(self, device: torch.device) -> Tensor:
        """What every token of the scaling pass runs with: [num_layers, num_experts].

        Top-k selects here too, as in PEFT and the xlora package: of equal values, those that torch.topk names.
        """
        shape = (self.num_layers, self.num_experts)
        return self._selected(torch.full(shape, self.config.scaling_pass_value, device=device))

    def _selected(self, scalings: Tensor) -> Tensor:
        """Keep the largest, which are not renormalised, or only by a softmax of their own (no temperature in it).

        A scaling of exactly 0 takes no part in that softmax. Source: `XLoraLayer.get_maybe_topk_scalings` of PEFT.
        """
        config = self.config
        if config.top_k_lora is not None:
            kept = torch.topk(scalings, config.top_k_lora, dim=-1).indices
            scalings = scalings * torch.zeros_like(scalings).scatter_(-1, kept, 1.0)
        if config.enable_softmax_topk:
            is_zero = scalings == 0
            scalings = torch.softmax(scalings.masked_fill(is_zero, float("-inf")), dim=-1).masked_fill(is_zero, 0.0)
        return scalings
