"""Adapters of a Mixtral's experts by the names that they had before transformers 5 fused these, merged by PEFT.

Such adapters were trained on a linear layer for each projection of each expert. Here PEFT adapts layers of these names
and merges them; the merged weights are put where transformers keeps them now.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.architecture_pairs import Pair
from tests.parity.peft_files import randomised


def unfused_adapters(pair: Pair, count: int, *, use_dora: bool = False) -> Any:
    """A PEFT model `a0`, `a1`, ... over one linear layer for each path that an adapter can change."""
    from peft import LoraConfig, get_peft_model

    paths = pair.base.linear_shapes
    layers = nn.Module()
    for path, (rows, columns) in paths.items():
        parent, _, name = path.rpartition(".")
        linear = nn.Linear(columns, rows, bias=False)
        linear.weight = nn.Parameter(_weight(pair.oracle, path).clone())
        _made(layers, parent).add_module(name, linear)
    targets = sorted({path.rpartition(".")[2] for path in paths})
    config = [LoraConfig(r=3 + i, lora_alpha=5, target_modules=targets, use_dora=use_dora) for i in range(count)]
    peft = get_peft_model(layers, config[0], adapter_name="a0")
    for index in range(1, count):
        peft.add_adapter(f"a{index}", config[index])
    for index in range(count):
        randomised(peft, f"a{index}", seed=3 + index)
    return peft.float().eval()


def merged_model(oracle: Any, peft: Any, weights: Sequence[float]) -> Any:
    """The model with W + sum of weight_i * (W_i - W), where W_i is what PEFT makes of W by merging adapter i."""
    model = copy.deepcopy(oracle)
    for index, weight in enumerate(weights):
        merged = copy.deepcopy(peft)
        merged.set_adapter(f"a{index}")
        for path, module in merged.base_model.model.named_modules():
            if f"a{index}" in getattr(module, "lora_A", {}):
                before = module.get_base_layer().weight.detach().clone()
                module.merge(adapter_names=[f"a{index}"])
                with torch.no_grad():
                    _weight(model, path).add_(weight * (module.get_base_layer().weight - before))
    return model


def _weight(model: Any, path: str) -> Tensor:
    """The weight of an old path, as part of the parameter that holds it now."""
    block, is_expert, rest = path.partition(".block_sparse_moe.")
    if not is_expert:
        weight: Tensor = model.get_submodule(path).weight
    elif rest == "gate":
        weight = model.get_submodule(f"{block}.mlp.gate").weight
    else:
        _, expert, name = rest.split(".")
        experts = model.get_submodule(f"{block}.mlp.experts")
        whole = experts.down_proj if name == "w2" else experts.gate_up_proj.chunk(2, dim=1)[name == "w3"]
        weight = whole[int(expert)]
    return weight.detach()


def _made(root: nn.Module, path: str) -> nn.Module:
    for name in filter(None, path.split(".")):
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    return root
