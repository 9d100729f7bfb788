"""What the tests of architectures share: a model served and in transformers, and adapters on all of its modules."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from inference_svc.adapters.base_model import BaseModelShape
from inference_svc.kernels.native.compiler import NativeUnavailable, load_code
from inference_svc.models.loading import read_config
from inference_svc.weights.in_situ import Scheme
from inference_svc.weights.opening import open_model
from tests.parity.executors import native_exact
from tests.parity.peft_files import randomised
from tests.parity.served import ServedModel
from tests.parity.tiny_models import TinyModel, write_gguf
from tests.parity.xlora_oracle import Expert, Mixture

LENGTH = 40  # past the sliding window, and past the length from which LongRoPE has other factors
IDS: list[int] = torch.randint(1, 96, (LENGTH,), generator=torch.Generator().manual_seed(1)).tolist()
# Whole, and as it is served: a prompt in two chunks, then token by token.
CHUNKS = ((LENGTH,), (17, 16, *[1] * 7))
FORMATS = ("safetensors", "gguf", "gguf-q8_0")


@dataclass(frozen=True)
class Pair:
    """The same weights, served by one or more executors and in transformers."""

    served: ServedModel
    oracle: Any
    others: tuple[ServedModel, ...] = ()

    @property
    def every_served(self) -> tuple[ServedModel, ...]:
        """All executors."""
        return (self.served, *self.others)

    @property
    def base(self) -> BaseModelShape:
        """What adapters need to know of the model."""
        return self.served.registry.base

    @property
    def has_experts(self) -> bool:
        """Some of its layers are mixtures of experts."""
        return any(".experts." in path for path in self.base.linear_shapes)


def on_compiled_code(path: Path, quantize: Scheme | None = None) -> tuple[ServedModel, ...]:
    """The same file on the native program in float32; nothing for mixtures of experts, and where it cannot be built."""
    if read_config(open_model(path)).num_experts:
        return ()
    try:
        load_code()
    except NativeUnavailable:
        return ()
    return (ServedModel(path, native_exact, batch_invariant=True, quantize=quantize),)


def written_model(tiny: TinyModel, model: Any, form: str, folder: Path) -> tuple[Any, Path]:
    """The model with the weights of its file, and the file."""
    if form == "safetensors":
        model.save_pretrained(folder)
        return model, folder
    kind = GGMLQuantizationType.F32 if form == "gguf" else GGMLQuantizationType.Q8_0
    return write_gguf(model, folder / "model.gguf", tiny.arch, kind), folder / "model.gguf"


def logits_of(model: Any, ids: list[int] = IDS) -> Tensor:
    """Of all positions of one pass, without a cache."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def peft_on_every_module(model: Any, base: BaseModelShape, *, use_dora: bool = False, count: int = 1) -> Any:
    """A PEFT model with adapters `a0`, `a1`, ... that change every linear layer, the head too."""
    from peft import LoraConfig, get_peft_model

    modules = sorted({path.rpartition(".")[2] for path in base.linear_shapes})
    every = [
        LoraConfig(task_type="CAUSAL_LM", r=3 + i, lora_alpha=5, target_modules=modules, use_dora=use_dora)
        for i in range(count)
    ]
    peft = get_peft_model(copy.deepcopy(model), every[0], adapter_name="a0").eval()
    for index, config in enumerate(every[1:], 1):
        peft.add_adapter(f"a{index}", config)
    for index in range(count):
        randomised(peft, f"a{index}", seed=3 + index)
    # Every module that we know is one that PEFT adapts.
    for path in base.linear_shapes:
        assert "a0" in getattr(peft.base_model.model.get_submodule(path), "lora_A", {}), path
    return peft


def mixture_on_every_module(base: BaseModelShape, shapes: Mapping[str, tuple[int, int]]) -> Mixture:
    """An X-LoRA of two adapters: one on every module of `shapes`, and one on every second."""
    modules = tuple(dict.fromkeys(path.split(".", 3)[-1] for path in shapes))
    config = {
        "enable_softmax": True,
        "enable_softmax_topk": False,
        "softmax_temperature": 1.0,
        "top_k_lora": None,
        "scaling_pass_value": 0.0,
        "global_scaling_weight": 1.0,
        "xlora_dropout_p": 0.2,
    }
    return Mixture(
        (Expert(2, modules), Expert(3, modules[::2])),
        config,
        depth=2,
        size=8,
        use_bias=True,
        relu=True,
        inner_step=3,
        seed=1,
        shapes=shapes,
        hidden=base.hidden_size,
    )
