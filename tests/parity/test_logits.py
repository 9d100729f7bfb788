"""Logits and scalings against transformers and PEFT on the same dequantized weights, in float32.

The bar is 1e-3 on logits of size about 20 (relative 5e-5): float32 sums in another order differ by about 1e-4 after 30
layers; an adapter with a wrong scale, order or row differs by more than 1.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inference_svc.adapters.selection import BaseSelection, LoraSelection, Selection, XLoraSelection
from tests.parity.executors import EXACT
from tests.parity.served import EXPERTS, ServedModel, serve_on

DEMO = Path(__file__).resolve().parents[2] / "orderings" / "demo"
# Transformers warns of a name of its own that PEFT still uses.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LOGITS_BAR = 1e-3
SCALINGS_BAR = 1e-4
LENGTH = 45
DECODED = (20, 19, *[1] * 6)  # as it is served: a prompt in two chunks, then token by token


@pytest.fixture(scope="module", params=EXACT)
def served(request: pytest.FixtureRequest, smollm2_gguf: Path) -> ServedModel:
    model = serve_on(request.param, smollm2_gguf)
    layers = json.loads((DEMO / "xlora-ordering.json").read_text())["layers"]
    model.load_demo(DEMO / "xlora", EXPERTS, layers)
    return model


@pytest.fixture(scope="module")
def token_ids() -> list[int]:
    generator = torch.Generator().manual_seed(5)
    return [1, *torch.randint(100, 49000, (LENGTH - 1,), generator=generator).tolist()]


@pytest.fixture(scope="module")
def oracle(transformers_smollm2: Any, token_ids: list[int]) -> Mapping[str, Tensor]:
    """What transformers and PEFT compute, by name of the case."""
    from peft import PeftModel

    ids = torch.tensor([token_ids])

    def logits(model: Callable[..., Any]) -> Tensor:
        with torch.no_grad():
            result: Tensor = model(ids, use_cache=False).logits[0]
        return result

    answers = {"base": logits(transformers_smollm2)}
    model = copy.deepcopy(transformers_smollm2)  # which PEFT changes
    peft = PeftModel.from_pretrained(model, DEMO / "xlora" / EXPERTS[0], adapter_name=EXPERTS[0])
    for name in EXPERTS[1:]:
        peft.load_adapter(DEMO / "xlora" / name, adapter_name=name)
    peft.float()
    for name in EXPERTS:
        peft.set_adapter(name)
        answers[name] = logits(peft)
    peft.add_weighted_adapter(["pirate", "json"], [0.7, 0.4], "weighted", combination_type="cat")
    peft.set_adapter("weighted")
    answers["weighted sum"] = logits(peft)
    base = peft.unload()
    answers["x-lora"], answers["scalings"] = peft_xlora(base, ids)
    return answers


def peft_xlora(base: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """PEFT's X-LoRA forward with the demo's classifier put in by hand (PEFT loses it on saving)."""
    from peft import XLoraConfig, get_peft_model
    from safetensors.torch import load_file

    base.config.use_cache = False
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=base.config.hidden_size,
        xlora_depth=1,
        layerwise_scalings=True,
        adapters={str(i): str(DEMO / "xlora" / name) for i, name in enumerate(EXPERTS)},
    )
    model = get_peft_model(base, config).float().eval()
    weights = load_file(DEMO / "xlora" / "xlora_classifier.safetensors")
    last = model.base_model.internal_xlora_classifier.layers[0]
    with torch.no_grad():
        last.weight.copy_(weights["last.weight"].float())
        last.bias.copy_(weights["last.bias"].float())
        logits = model(ids).logits[0]
    return logits, model.get_latest_scalings()[0]


CASES: dict[str, Selection] = {
    "base": BaseSelection(),
    **{name: LoraSelection({name: 1.0}) for name in EXPERTS},
    "weighted sum": LoraSelection({"pirate": 0.7, "json": 0.4}),
    "x-lora": XLoraSelection("mixture"),
}


@pytest.fixture(scope="module")
def decoded(served: ServedModel, token_ids: list[int]) -> Mapping[str, tuple[Tensor, Tensor | None]]:
    """What the cache makes of every case, all of them decoded together: weights are unpacked once for all."""
    return dict(zip(CASES, served.run_together(token_ids, CASES.values(), DECODED), strict=True))


@pytest.mark.parametrize("way", ["whole prompt", "cached decoding"])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_peft(
    served: ServedModel,
    decoded: Mapping[str, tuple[Tensor, Tensor | None]],
    oracle: Mapping[str, Tensor],
    token_ids: list[int],
    case: str,
    way: str,
) -> None:
    is_whole = way == "whole prompt"
    logits, scalings = served.run(token_ids, CASES[case], (LENGTH,)) if is_whole else decoded[case]
    assert (logits - oracle[case]).abs().max() <= LOGITS_BAR
    if case == "x-lora":
        assert scalings is not None
        assert (scalings - oracle["scalings"]).abs().max() <= SCALINGS_BAR
    else:
        assert scalings is None


@pytest.mark.parametrize("case", [name for name in CASES if name != "base"])
def test_every_adapter_really_changes_the_logits(oracle: Mapping[str, Tensor], case: str) -> None:
    # Otherwise the test above would pass with adapters that do nothing.
    assert (oracle[case] - oracle["base"]).abs().max() > 1.0
