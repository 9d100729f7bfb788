"""What several parity tests compare with."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from inference_svc.models.loading import read_config
from inference_svc.weights.gguf import GgufFile

READER = gguf.GGUFReader


@pytest.fixture(scope="session", autouse=True)
def one_reader_of_the_real_model(smollm2_gguf: Path) -> Iterator[None]:
    """Transformers reads a file anew at every step, which takes the `gguf` package long for 100,000 strings."""
    kept = functools.cache(READER)

    def read(path: str | Path, *options: Any) -> Any:
        return kept(smollm2_gguf) if Path(path) == smollm2_gguf and not options else READER(path, *options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", read)
        yield


@pytest.fixture(scope="session")
def transformers_smollm2(smollm2_gguf: Path) -> PreTrainedModel:
    """The real model in float32 as transformers reads its GGUF file: eager attention, evaluation mode.

    Shared by the whole session: what changes it (PEFT does) must change it back, or copy it.
    """
    model = AutoModelForCausalLM.from_pretrained(
        str(smollm2_gguf.parent), gguf_file=smollm2_gguf.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    # Versions of transformers have lost the base of the rotary frequencies on this path, which changes every logit.
    config = read_config(GgufFile.open(smollm2_gguf))
    exponents = torch.arange(0, config.rope.dim, 2).float() / config.rope.dim
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, 1.0 / config.rope.theta**exponents)
    return model
