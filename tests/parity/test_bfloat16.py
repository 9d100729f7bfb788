"""Activations in bfloat16, as on CUDA, but on the CPU: base, LoRA, DoRA and X-LoRA of every architecture.

The exact answer is that of transformers and PEFT in float32, on weights that bfloat16 can hold. Rounding moves logits,
by how much is a matter of the model. The bar is 1.5 times what transformers and PEFT are off in bfloat16, root mean
square over all logits of size 3 to 9: that is 0.02 to 0.3, ours 0.6 to 1.4 times as much. A term in the wrong place, or
one that is missing, is off by 1 and more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inference_svc.adapters import selection
from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.lora import load_lora
from inference_svc.adapters.xlora import load_xlora
from inference_svc.kernels.reference import ReferenceKernels
from inference_svc.layers.eager import EagerExecutor
from inference_svc.layers.executor import Executor
from inference_svc.models.definition import ModelDefinition
from tests.parity.architecture_pairs import (
    CHUNKS,
    IDS,
    Pair,
    logits_of,
    mixture_on_every_module,
    peft_on_every_module,
    written_model,
)
from tests.parity.peft_files import written
from tests.parity.served import ServedModel
from tests.parity.tiny_models import TINY_MODELS
from tests.parity.xlora_oracle import peft_answer

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of tied heads
BAR = 1.5


def in_bfloat16(model: ModelDefinition, batch_invariant: bool) -> Executor:
    return EagerExecutor(model, ReferenceKernels(batch_invariant=batch_invariant), torch.bfloat16)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def pair_of(name: str) -> Pair:
        if name not in made:
            rounded = TINY_MODELS[name].build().to(torch.bfloat16)
            oracle, path = written_model(TINY_MODELS[name], rounded, "safetensors", tmp_path_factory.mktemp("model"))
            made[name] = Pair(ServedModel(path, in_bfloat16), oracle)
        return made[name]

    return pair_of


def off(answer: Tensor, exact: Tensor) -> float:
    return float((answer.float() - exact).square().mean().sqrt())


def check(served: ServedModel, mixture: selection.Mixture, rounded: Tensor, exact: Tensor) -> None:
    assert off(rounded, exact) > 0
    for chunks in CHUNKS:
        logits, _ = served.run_mixture(IDS, mixture, chunks)
        assert off(logits, exact) <= BAR * off(rounded, exact)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_base_model(make: Callable[[str], Pair], name: str) -> None:
    pair = make(name)
    check(pair.served, selection.Mixture(), logits_of(pair.oracle), logits_of(in_float32(pair.oracle)))


# DoRA where it meets fused layers and biases.
ADAPTERS = [(name, False) for name in TINY_MODELS if name != "mixtral"] + [(name, True) for name in ("phi3", "phi")]


@pytest.mark.parametrize(("name", "use_dora"), ADAPTERS)
def test_an_adapter_on_every_module(make: Callable[[str], Pair], tmp_path: Path, name: str, use_dora: bool) -> None:
    pair = make(name)
    base = pair.served.registry.base
    peft = peft_on_every_module(pair.oracle, base, use_dora=use_dora)
    loaded = load_lora(written(peft, "a0", tmp_path / "a0"), base, AdapterLimits())
    for delta in loaded.bank.deltas.values():
        assert delta.a.dtype is delta.b.dtype is torch.bfloat16
        assert delta.base_factor is None or delta.base_factor.dtype is torch.float32
    mixture = selection.Mixture(constant=(selection.WeightedBank(loaded.bank, 1.0),))
    check(pair.served, mixture, logits_of(peft), logits_of(in_float32(peft)))


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma2", "phi", "mixtral"])
def test_an_xlora_on_every_module(make: Callable[[str], Pair], tmp_path: Path, name: str) -> None:
    pair = make(name)
    base = pair.served.registry.base
    shapes = {path: shape for path, shape in base.linear_shapes.items() if "block_sparse_moe" not in path}
    mixture = mixture_on_every_module(base, shapes)
    folder = mixture.write(tmp_path, "original")
    exact, _ = peft_answer(in_float32(pair.oracle), mixture, folder, IDS)
    rounded, _ = peft_answer(pair.oracle, mixture, folder, IDS, torch.bfloat16)
    loaded = load_xlora(mixture.write(tmp_path, "peft"), (), {}, base, AdapterLimits())
    assert loaded.classifier.weights[0].dtype is torch.float32
    check(pair.served, selection.Mixture(xlora=selection.XLoraMixture(loaded.bank, loaded.classifier)), rounded, exact)


def in_float32(model: Any) -> Any:
    return copy.deepcopy(model).float()
