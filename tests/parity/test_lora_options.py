"""LoRA and DoRA against PEFT's forward in float32, over a grid of options, on small random models.

PEFT's models are built in memory; the files are written from their parameters, not by PEFT. The bar is 1e-3 on logits
of size about 5, with float32 on both sides: sums in another order differ by about 1e-5, a wrong scale by more than 0.1.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from inference_svc.adapters.lora import load_lora
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.selection import LoraSelection
from tests.inference_svc.weights.tiny_llama import write_tiny_llama_gguf
from tests.parity.peft_files import randomised, written
from tests.parity.served import ServedModel, serve_on_each

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of tied heads and of rsLoRA with patterns
BAR = 1e-3
IDS = [3, 17, 5, 60, 2, 88, 41, 9, 33, 70, 12, 4]
CHUNKS = ([12], [5, 3, 1, 1, 1, 1])  # the whole prompt; a prompt in two pieces, then decoding from the cache
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
PATTERNS = ("q_proj", "^model.layers.0.self_attn.o_proj", r"layers\.1\.mlp\..*", ".*_proj", "lm_head", "up_proj|v_proj")
Options = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """The same random weights, served on each executor and in transformers."""

    served: list[ServedModel]
    oracle: Any


def make_pair(folder: Path, quantization: gguf.GGMLQuantizationType, *, tied: bool) -> Pair:
    from transformers import LlamaConfig, LlamaForCausalLM

    path = folder / f"{quantization.name}-{tied}.gguf"
    weights = write_tiny_llama_gguf(path, quantization=quantization, tied=tied)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).float().eval()
    missing, unexpected = model.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()}, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    return Pair(serve_on_each(path, batch_invariant=True), model)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """A dense tied, a quantized tied and a quantized untied model."""
    folder = tmp_path_factory.mktemp("tiny")
    kinds = gguf.GGMLQuantizationType
    return {
        "dense": make_pair(folder, kinds.F32, tied=True),
        "quantized": make_pair(folder, kinds.Q4_0, tied=True),
        "untied": make_pair(folder, kinds.Q8_0, tied=False),
    }


@st.composite
def options(draw: st.DrawFn) -> Options:
    """Keys of a LoraConfig."""
    modules = draw(st.lists(st.sampled_from(MODULES), min_size=1, max_size=4, unique=True))
    chosen: Options = {
        "r": draw(st.integers(1, 5)),
        "lora_alpha": draw(st.sampled_from([1, 4, 7, 16])),
        "use_rslora": draw(st.booleans()),
        "use_dora": draw(st.booleans()),
        "rank_pattern": draw(st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 8), max_size=2)),
        "alpha_pattern": draw(st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 20), max_size=2)),
        "target_modules": draw(
            st.sampled_from([modules, modules, "all-linear", r".*layers\.1\..*(q|k|down)_proj", ".*(o_proj|lm_head)"])
        ),
    }
    if isinstance(chosen["target_modules"], list) and modules != ["lm_head"]:
        layers = draw(st.sampled_from([None, 0, [1], [0, 1]]))
        chosen |= {"layers_to_transform": layers}
        chosen |= {"layers_pattern": draw(st.sampled_from([None, "layers"])) if layers is not None else None}
    return chosen


def peft_model(pair: Pair, every: list[Options]) -> Any:
    """A PEFT model with the adapters `a0`, `a1`, ...; their parameters are random."""
    from peft import LoraConfig, get_peft_model

    configs = [LoraConfig(task_type="CAUSAL_LM", **each) for each in every]
    peft = get_peft_model(copy.deepcopy(pair.oracle), configs[0], adapter_name="a0")
    for index, config in enumerate(configs[1:], 1):
        peft.add_adapter(f"a{index}", config)
    for index in range(len(configs)):
        randomised(peft, f"a{index}", index + 10 * len(every))
    return peft.float().eval()


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([IDS]), use_cache=False).logits[0]
    return logits


def compare(pair: Pair, peft: Any, weights: list[float], expected: Tensor) -> None:
    """Serve the adapters with these weights, whole and from the cache, beside what is expected."""
    old = pair.served[0].registry
    registry = AdapterRegistry(old.base, old.limits)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(len(weights)):
            loaded = load_lora(written(peft, f"a{index}", Path(folder) / f"a{index}"), registry.base, registry.limits)
            registry.load(f"a{index}", loaded, source="test", replace=True)
    mixture = registry.lease(LoraSelection({f"a{index}": weight for index, weight in enumerate(weights)})).mixture
    for served, chunks in itertools.product(pair.served, CHUNKS):
        logits, _ = served.run_mixture(IDS, mixture, chunks)
        assert (logits - expected).abs().max() <= BAR


SLOW = settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))


@SLOW
@given(name=st.sampled_from(["dense", "quantized", "untied"]), chosen=options())
def test_one_adapter_computes_what_peft_computes(pairs: dict[str, Pair], name: str, chosen: Options) -> None:
    peft = peft_model(pairs[name], [chosen])
    expected = logits_of(peft)
    assert (expected - logits_of(pairs[name].oracle)).abs().max() > 0.01  # else nothing would be compared
    compare(pairs[name], peft, [1.0], expected)


@SLOW
@given(
    name=st.sampled_from(["dense", "quantized", "untied"]),
    every=st.lists(st.tuples(options(), st.sampled_from([1.0, 0.5, -0.75, 0.0, 2.0])), min_size=2, max_size=3),
)
def test_a_weighted_sum_adds_the_weighted_change_that_each_adapter_makes(
    pairs: dict[str, Pair], name: str, every: list[tuple[Options, float]]
) -> None:
    # The oracle's weights are W + sum of weight_i * (W_i - W), where W_i is what PEFT makes of W by merging adapter i.
    pair = pairs[name]
    peft = peft_model(pair, [chosen for chosen, _ in every])
    total = copy.deepcopy(pair.oracle)
    if total.config.tie_word_embeddings:
        total.lm_head.weight = torch.nn.Parameter(total.lm_head.weight.detach().clone())
    for index, (_, weight) in enumerate(every):
        merged = copy.deepcopy(peft)
        merged.set_adapter(f"a{index}")
        for path, module in merged.base_model.model.named_modules():
            if f"a{index}" in getattr(module, "lora_A", {}):
                before = module.get_base_layer().weight.detach().clone()
                if path == "lm_head":  # tied in PEFT's model: merging must not reach the embedding
                    module.get_base_layer().weight = torch.nn.Parameter(before.clone())
                module.merge(adapter_names=[f"a{index}"])
                with torch.no_grad():
                    total.get_submodule(path).weight += weight * (module.get_base_layer().weight - before)
    compare(pair, peft, [weight for _, weight in every], logits_of(total))


@pytest.mark.parametrize("kinds", [(False, False), (True, False), (False, False, False)])
def test_several_adapters_at_weight_one_are_what_peft_computes_with_all_of_them_active(
    pairs: dict[str, Pair], kinds: tuple[bool, ...]
) -> None:
    # PEFT lets a DoRA change the sum so far, so that two of them depend on their order; with one, first, it agrees.
    every = [
        {"r": index + 2, "target_modules": ["q_proj", "down_proj", "lm_head"], "use_dora": is_dora}
        for index, is_dora in enumerate(kinds)
    ]
    peft = peft_model(pairs["quantized"], every)
    peft.base_model.set_adapter([f"a{index}" for index in range(len(kinds))])
    compare(pairs["quantized"], peft, [1.0] * len(kinds), logits_of(peft))


def test_a_weighted_sum_is_that_of_add_weighted_adapter(pairs: dict[str, Pair]) -> None:
    every: list[Options] = [
        {"r": 2, "target_modules": ["q_proj", "up_proj"]},
        {
            "r": 4,
            "target_modules": ["up_proj", "q_proj"],
            "lora_alpha": 3,
            "use_rslora": True,
            "rank_pattern": {"up_proj": 1},
        },
    ]
    peft = peft_model(pairs["untied"], every)
    peft.add_weighted_adapter(["a0", "a1"], [0.7, 0.4], "sum", combination_type="cat")
    peft.set_adapter("sum")
    compare(pairs["untied"], peft, [0.7, 0.4], logits_of(peft))


def test_an_adapted_tied_head_leaves_the_embedding_alone(pairs: dict[str, Pair]) -> None:
    pair = pairs["dense"]
    embedding = pair.served[0].registry.base.weights["model.embed_tokens"]
    before = embedding.dequantize().clone()
    peft = peft_model(pair, [{"r": 3, "target_modules": ["lm_head"], "use_dora": True}])
    compare(pair, peft, [1.0], logits_of(peft))
    assert torch.equal(embedding.dequantize(), before)
    assert pair.served[0].registry.base.weights["lm_head"] is embedding


def test_a_dora_answers_in_a_crowd_as_it_does_alone_to_the_bit(pairs: dict[str, Pair], tmp_path: Path) -> None:
    old = pairs["quantized"].served[0].registry
    registry = AdapterRegistry(old.base, old.limits)
    every: list[Options] = [
        {"r": 3, "target_modules": ["q_proj", "down_proj", "lm_head"], "use_dora": True},
        {"r": 2, "target_modules": ["q_proj", "up_proj"]},
        {"r": 4, "target_modules": ["q_proj", "lm_head"], "use_dora": True},
    ]
    peft = peft_model(pairs["quantized"], every)
    for index in range(3):
        files = written(peft, f"a{index}", tmp_path / f"a{index}")
        registry.load(f"a{index}", load_lora(files, registry.base, registry.limits), source="test")
    chosen = [{"a0": 1.0}, {"a1": 1.0}, {"a0": 0.5, "a1": -1.0}, {"a2": 1.0, "a0": -0.25}, {"a2": 0.0}]
    mixtures = [registry.lease(LoraSelection(weights)).mixture for weights in chosen]
    for served in pairs["quantized"].served:
        alone = [served.run_mixture(IDS, mixture, [len(IDS)])[0] for mixture in mixtures]
        sequences = [served.start(IDS, mixture) for mixture in mixtures]
        crowd = served.step([(s, m, len(IDS)) for s, m in zip(sequences, mixtures, strict=True)])
        for sequence in sequences:
            served.finish(sequence)
        for solo, result in zip(alone, crowd, strict=True):
            assert result.logits is not None
            assert torch.equal(solo, torch.from_numpy(result.logits))
