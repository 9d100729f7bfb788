"""Adapters of experts as PEFT writes them since transformers keeps all experts of a layer in one parameter (5.0).

PEFT then adapts parameters (`target_parameters`) beside modules: `mlp.experts.gate_up_proj`, which holds w1 over w3,
`mlp.experts.down_proj`, w2, and `mlp.gate.weight`, the router. One pair of matrices has the ranks of all experts: A
expert by expert, B rank by rank. Where both parameters are adapted, the tensors of `gate_up_proj` are called
`base_layer`. Source: `ParamWrapper` of PEFT 0.21.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from inference_svc.adapters.base_model import BaseModelShape

_BLOCK = "block_sparse_moe"
_LAYER = re.compile(rf"(?P<layer>.+)\.{_BLOCK}\.(?:experts\.\d+\.(?P<weight>w[123])|gate)")
_KEY = re.compile(
    r"(?P<layer>.+)\.mlp\.(?P<part>gate|experts|experts\.base_layer)\.lora_(?P<half>[AB])(?:\.default)?\.weight"
)
_PARAMETERS = {"w1": "experts.gate_up_proj", "w3": "experts.gate_up_proj", "w2": "experts.down_proj"}


def parameter_of(path: str) -> str | None:
    """The parameter of transformers that holds the weight of an expert's layer or a router; None: of another layer."""
    match = _LAYER.fullmatch(path)
    if match is None:
        return None
    return f"{match['layer']}.mlp.{_PARAMETERS[match['weight']] if match['weight'] else 'gate.weight'}"


def unknown_parameters(parameters: Iterable[str], base: BaseModelShape) -> list[str]:
    """Those that no expert and no router of the base model is in, by what their paths end with."""
    known = {parameter for path in base.linear_shapes if (parameter := parameter_of(path)) is not None}
    return sorted(name for name in parameters if not any(f".{path}".endswith(f".{name}") for path in known))


def unfused(tensors: Mapping[str, Tensor], base: BaseModelShape, malformed: list[str]) -> dict[str, Tensor]:
    """The same tensors under names of one layer for each expert; what cannot be taken apart goes into `malformed`."""
    first = f"model.layers.0.{_BLOCK}.experts."
    num_experts = sum(path.startswith(first) and path.endswith(".w1") for path in base.linear_shapes)
    result: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or not num_experts:
            result[key] = tensor
        elif match["part"] == "gate":
            result[f"{match['layer']}.{_BLOCK}.gate.lora_{match['half']}.weight"] = tensor
        elif tensor.dim() != 2 or tensor.shape[match["half"] == "B"] % num_experts:
            malformed.append(
                f"`{key}` has shape {list(tensor.shape)}: its ranks are not those of {num_experts} experts"
            )
        else:
            partner = tensors.get(key.replace(f"lora_{match['half']}", "lora_B")) if match["half"] == "A" else tensor
            if partner is not None and partner.dim() == 2:
                is_fused = partner.shape[0] == 2 * base.linear_shapes[f"{first}0.w1"][0]
                result |= _parts(f"{match['layer']}.{_BLOCK}.experts", match["half"], tensor, num_experts, is_fused)
            else:
                malformed.append(f"`{key}` has no lora_B beside it")
    return result


def _parts(prefix: str, half: str, tensor: Tensor, num_experts: int, is_fused: bool) -> dict[str, Tensor]:
    """One half of a pair for every expert."""
    parts: dict[str, Tensor] = {}
    for expert in range(num_experts):
        if half == "A":
            own = tensor.reshape(num_experts, -1, tensor.shape[1])[expert]
            values = {"w1": own, "w3": own} if is_fused else {"w2": own}
        else:
            own = tensor.reshape(tensor.shape[0], -1, num_experts)[:, :, expert]
            values = dict(zip(("w1", "w3"), own.chunk(2), strict=True)) if is_fused else {"w2": own}
        parts |= {f"{prefix}.{expert}.{name}.lora_{half}.weight": value for name, value in values.items()}
    return parts
