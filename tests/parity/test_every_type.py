"""Every type that the gguf package can unpack, on a small random Llama: logits against transformers over its weights.

The files have any bits at all, with scales like those of weights. The bar is 1e-3 on logits of up to 18, and what is
found at most 1.4e-4: sums in another order. The exact executors hold it with every value of the rare types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from inference_svc.adapters import selection
from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.lora import load_lora
from inference_svc.adapters.xlora import load_xlora
from inference_svc.weights.quantization import is_supported
from tests.inference_svc.weights.packed_rows import PACKED_TYPES, rows_of_size
from tests.parity.architecture_pairs import CHUNKS, IDS, logits_of, mixture_on_every_module, peft_on_every_module
from tests.parity.peft_files import written
from tests.parity.served import ServedModel, serve_on_each
from tests.parity.tiny_models import TinyModel, write_gguf
from tests.parity.xlora_oracle import peft_answer

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of tied heads, transformers of configs
LOGITS_BAR, SCALINGS_BAR = 1e-3, 1e-4
# Rows are as long as the blocks of the K-quants.
SIZES = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
LLAMA = TinyModel("Llama", gguf.MODEL_ARCH.LLAMA, SIZES)
FLOATS = (GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
Served = tuple[list[ServedModel], Any]


def random_bits(values: NDArray[np.float32], kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """Rows as large as these."""
    rows, columns = values.shape
    return rows_of_size(kind, rows, columns, float(values.std()), seed=rows)


@pytest.fixture(scope="module")
def model() -> Any:
    return LLAMA.build()


@pytest.fixture(scope="module")
def serve(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[GGMLQuantizationType], Served]:
    """The executors and the oracle of a type; the latest is kept."""
    kept: dict[GGMLQuantizationType, Served] = {}

    def made(kind: GGMLQuantizationType) -> Served:
        if kind not in kept:
            kept.clear()
            path = tmp_path_factory.mktemp(kind.name) / "model.gguf"
            oracle = write_gguf(model, path, LLAMA.arch, kind, pack=None if kind in FLOATS else random_bits)
            kept[kind] = (serve_on_each(path, batch_invariant=True), oracle)
        return kept[kind]

    return made


def test_these_are_all_types_that_the_gguf_package_can_unpack() -> None:
    known = {kind for kind in GGML_QUANT_SIZES if is_supported(kind)}
    assert known == {GGMLQuantizationType.F32, *FLOATS, *PACKED_TYPES}


@pytest.mark.parametrize("kind", [*FLOATS, *PACKED_TYPES], ids=lambda kind: kind.name)
@pytest.mark.parametrize("adapters", ["base", "lora", "xlora"])
def test_a_type(
    serve: Callable[[GGMLQuantizationType], Served], tmp_path: Path, kind: GGMLQuantizationType, adapters: str
) -> None:
    every_served, oracle = serve(kind)
    base = every_served[0].registry.base
    scalings = None
    if adapters == "base":
        mixture, expected = selection.Mixture(), logits_of(oracle)
    elif adapters == "lora":
        peft = peft_on_every_module(oracle, base)
        expected = logits_of(peft)
        lora = load_lora(written(peft, "a0", tmp_path / "a0"), base, AdapterLimits())
        mixture = selection.Mixture(constant=(selection.WeightedBank(lora.bank, 1.0),))
    else:
        # As strong on these rows as it is on the shorter ones of other tests.
        drawn = replace(mixture_on_every_module(base, base.linear_shapes), strength=0.15)
        expected, scalings = peft_answer(oracle, drawn, drawn.write(tmp_path, "original"), IDS)
        loaded = load_xlora(drawn.write(tmp_path, "peft"), (), {}, base, AdapterLimits())
        mixture = selection.Mixture(xlora=selection.XLoraMixture(loaded.bank, loaded.classifier))
    for served in every_served:
        for chunks in CHUNKS if adapters == "base" else CHUNKS[1:]:
            logits, applied = served.run_mixture(IDS, mixture, chunks)
            assert (logits - expected).abs().max() <= LOGITS_BAR
            if scalings is not None:
                assert applied is not None
                assert (applied - scalings).abs().max() <= SCALINGS_BAR
