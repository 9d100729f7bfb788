"""X-LoRA mixtures drawn from all options, written in both layouts, and what PEFT computes with them."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, LAYERS, FFN, KV, VOCAB = 32, 2, 64, 16, 96
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}
HEAD = "lm_head"
MODULES = (*SHAPES, HEAD)
LINEAR_SHAPES = {f"model.layers.{i}.{module}": shape for i in range(LAYERS) for module, shape in SHAPES.items()}
LINEAR_SHAPES[HEAD] = (VOCAB, HIDDEN)


@dataclass(frozen=True)
class Expert:
    """One LoRA adapter: its rank and the modules that it changes."""

    rank: int
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Mixture:
    """Everything that a configuration of X-LoRA can say; fields that only one layout has restrict `layouts`."""

    experts: tuple[Expert, ...]
    config: dict[str, Any]
    depth: int
    size: int
    use_bias: bool
    relu: bool
    inner_step: int  # 1: nothing between the layers, 2: ReLU, 3: ReLU and dropout
    seed: int
    layerwise: bool = field(default=True)
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=lambda: LINEAR_SHAPES)  # of the model, in its order
    hidden: int = HIDDEN
    strength: float = 0.3  # of the numbers in A and B

    @property
    def layouts(self) -> tuple[str, ...]:
        """PEFT always has biases and, between layers, ReLU."""
        return ("original", "peft") if self.use_bias and (self.relu or self.depth == 1) else ("original",)

    @property
    def paths(self) -> list[str]:
        """The adapted layers in module order: row i of the classifier is layer i."""
        chosen = {module for expert in self.experts for module in expert.modules}
        return [path for path in self.shapes if _module(path) in chosen]

    @property
    def order(self) -> tuple[str, ...]:
        """Names of the adapters in the original layout."""
        return tuple(f"adapter_{index + 1}" for index in range(len(self.experts)))

    def expert_tensors(self, index: int) -> dict[str, Tensor]:
        """A and B of an adapter, strong enough to move logits by far more than the bar."""
        generator = torch.Generator().manual_seed(100 * self.seed + index)
        expert, tensors = self.experts[index], {}
        for path in self.paths:
            if _module(path) in expert.modules:
                rows, columns = self.shapes[path]
                prefix = f"base_model.model.{path}"
                tensors[f"{prefix}.lora_A.weight"] = (
                    torch.randn(expert.rank, columns, generator=generator) * self.strength
                )
                tensors[f"{prefix}.lora_B.weight"] = torch.randn(rows, expert.rank, generator=generator) * self.strength
        return tensors

    def classifier(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each layer; without `use_bias` the biases are zero."""
        generator = torch.Generator().manual_seed(self.seed)
        outputs = len(self.experts) * (len(self.paths) if self.layerwise else 1)
        sizes = [self.hidden, *[self.size] * (self.depth - 1), outputs]
        layers = []
        for columns, rows in itertools.pairwise(sizes):
            weight = torch.randn(rows, columns, generator=generator) * columns**-0.5 * 2
            bias = torch.randn(rows, generator=generator) * (0.5 if self.use_bias else 0.0)
            layers.append((weight, bias))
        return layers

    def write(self, root: Path, layout: str) -> Path:
        """The mixture in a folder of its own."""
        folder = root / layout
        names = self.order if layout == "original" else tuple(map(str, range(len(self.experts))))
        for index, name in enumerate(names):
            (folder / name).mkdir(parents=True)
            config = {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "r": self.experts[index].rank,
                "lora_alpha": 2 * self.experts[index].rank,
                "target_modules": sorted(module.rpartition(".")[2] for module in self.experts[index].modules),
            }
            (folder / name / "adapter_config.json").write_text(json.dumps(config))
            save_file(self.expert_tensors(index), folder / name / "adapter_model.safetensors")
        common = {
            "hidden_size": self.hidden,
            "layerwise_scalings": self.layerwise,
            "xlora_depth": self.depth,
            "xlora_size": self.size,
        }
        layers = self.classifier()
        if layout == "original":
            prefixes = [f"inner.{self.inner_step * index}" for index in range(self.depth - 1)] + ["last"]
            named = {"base_model_id": "", "use_bias": self.use_bias, "enable_relu_and_dropout": self.relu}
            (folder / "xlora_config.json").write_text(json.dumps(common | self.config | named))
            path = folder / "xlora_classifier.safetensors"
        else:
            step = 3 if self.config["xlora_dropout_p"] > 0 else 2
            prefixes = [f"base_model.internal_xlora_classifier.layers.{step * i}" for i in range(self.depth)]
            named = {"peft_type": "XLORA", "adapters": dict.fromkeys(names, "")}
            (folder / "adapter_config.json").write_text(json.dumps(common | self.config | named))
            path = folder / "adapter_model.safetensors"
        tensors = {f"{p}.weight": weight for p, (weight, _) in zip(prefixes, layers, strict=True)}
        if self.use_bias:
            tensors |= {f"{p}.bias": bias for p, (_, bias) in zip(prefixes, layers, strict=True)}
        save_file(tensors, path)
        return folder


def mixtures() -> st.SearchStrategy[Mixture]:
    """Any combination of the options."""

    @st.composite
    def draw_one(draw: st.DrawFn) -> Mixture:
        modules = st.lists(st.sampled_from(sorted(MODULES)), min_size=1, max_size=4, unique=True).map(tuple)
        experts = draw(st.lists(st.builds(Expert, st.integers(1, 5), modules), min_size=2, max_size=4).map(tuple))
        relu = draw(st.booleans())
        config = {
            "enable_softmax": draw(st.booleans()),
            "enable_softmax_topk": draw(st.booleans()),
            "softmax_temperature": draw(st.sampled_from([0.3, 1.0, 2.5])),
            "top_k_lora": draw(st.none() | st.integers(1, len(experts))),
            "scaling_pass_value": draw(st.sampled_from([0.0, 0.0, 0.25, -1.0, None])),
            "global_scaling_weight": draw(st.sampled_from([1.0, 0.5, -0.75])),
            "xlora_dropout_p": draw(st.sampled_from([0.0, 0.2, 0.9])),
        }
        return Mixture(
            experts,
            config,
            depth=draw(st.integers(1, 4)),
            size=draw(st.sampled_from([5, 24])),
            use_bias=draw(st.booleans()),
            relu=relu,
            inner_step=draw(st.sampled_from([1, 2, 3])),
            seed=draw(st.integers(0, 1000)),
            layerwise=draw(st.booleans()),
        )

    return draw_one()


def peft_answer(
    base: Any, mixture: Mixture, folder: Path, token_ids: list[int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Logits [tokens, vocab_size] and applied scalings [tokens, layers, adapters] of PEFT's forward pass.

    Its own saving and loading of X-LoRA takes no part: the classifier's tensors are put in by hand.
    """
    from peft import XLoraConfig, get_peft_model
    from peft.tuners.xlora.layer import XLoraLayer

    base = copy.deepcopy(base)
    base.config.use_cache = False
    value = mixture.config["scaling_pass_value"]
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=mixture.hidden,
        adapters={str(index): str(folder / name) for index, name in enumerate(mixture.order)},
        layerwise_scalings=mixture.layerwise,
        xlora_depth=mixture.depth,
        xlora_size=mixture.size,
        **{**mixture.config, "scaling_pass_value": 0.0 if value is None else value},
    )
    with _loading_by_path() if HEAD in mixture.paths else contextlib.nullcontext():
        model = get_peft_model(base, config).to(dtype).eval()
    model.base_model.set_scaling_pass_value(value)
    sequential = model.base_model.internal_xlora_classifier.layers
    linear = [module for module in sequential if isinstance(module, torch.nn.Linear)]
    with torch.no_grad():
        for module, (weight, bias) in zip(linear, mixture.classifier(), strict=True):
            module.weight.copy_(weight)
            module.bias.copy_(bias)
        if not mixture.relu:
            for index, module in enumerate(sequential):
                if isinstance(module, torch.nn.ReLU):
                    sequential[index] = torch.nn.Identity()
        logits = model(torch.tensor([token_ids])).logits[0]
    scalings = model.get_latest_scalings()
    applied = [
        XLoraLayer(None, None, None, layer, config).get_maybe_topk_scalings(scalings)[0]
        for layer in range(len(mixture.paths))
    ]
    return logits, torch.stack(applied, dim=1).detach()


def _module(path: str) -> str:
    """A module's path within its layer, for instance `self_attn.q_proj`."""
    return path.split(".", 3)[-1]


@contextlib.contextmanager
def _loading_by_path() -> Iterator[None]:
    """PEFT (0.21.2) computes X-LoRA with an adapted head, but its loader looks for `model.lm_head`: mend that here."""
    from peft import LoraConfig
    from peft.tuners.xlora import model as peft_xlora
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    def load(lora_model: Any, adapter_name: str, model_id: str, **_: Any) -> None:
        lora_model.peft_config[adapter_name] = LoraConfig.from_pretrained(model_id)
        lora_model.inject_adapter(lora_model.model, adapter_name)
        weights = load_peft_weights(model_id, device="cpu")
        named = {key.removeprefix("base_model."): tensor for key, tensor in weights.items()}
        result = set_peft_model_state_dict(lora_model, named, adapter_name=adapter_name)
        assert not result.unexpected_keys

    own = peft_xlora._load_adapter_into_lora_model
    peft_xlora._load_adapter_into_lora_model = load
    try:
        yield
    finally:
        peft_xlora._load_adapter_into_lora_model = own
