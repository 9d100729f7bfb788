"""What the service reckons with before it reads the weights, on a tiny model and any machine."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch

from inference_svc import memory_plan
from inference_svc.config import load_config
from inference_svc.engine.engine import make_cache
from inference_svc.errors import InvalidRequest
from inference_svc.memory_plan import DEFAULT_ADAPTER_BYTES, room_for_adapters
from inference_svc.models.base_model import OpenedModel, open_base_model
from inference_svc.weights.errors import NotEnoughMemory
from tests.inference_svc.weights.tiny_llama import write_tiny_llama_gguf


def opened_model(folder: Path, kernels: str, quantization: str = "F32") -> OpenedModel:
    path = folder / "tiny.gguf"
    write_tiny_llama_gguf(path, quantization=gguf.GGMLQuantizationType[quantization])
    return open_base_model(str(path), base_model_id=None, device="cpu", kernels=kernels, batch_invariant=False)


@pytest.fixture
def opened(tmp_path: Path) -> OpenedModel:
    return opened_model(tmp_path, "reference")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """Its memory, to be set."""
    memory: dict[str, int | None] = {"available": None}
    monkeypatch.setattr(memory_plan, "available_memory", lambda _: memory["available"])
    return memory


def needed(opened: OpenedModel, tokens: int) -> int:
    """Weights, the largest of them unpacked, and the cache as the engine makes it."""
    weights = sum(entry.nbytes for entry in opened.source.entries.values())
    cache = make_cache(
        opened.config, tokens, opened.kernels.cache_dtype, torch.device("cpu"), hidden_dtype=opened.kernels.dtype
    )
    return weights + 128 * 64 * 4 + cache.nbytes


def test_what_just_fits_starts_and_a_byte_less_does_not(opened: OpenedModel, machine: dict[str, int | None]) -> None:
    config = load_config({"kv_cache_tokens": 100, "max_adapter_bytes": 5000}, {})
    machine["available"] = needed(opened, 100) + 5000
    assert room_for_adapters(config, opened) == 5000
    machine["available"] = needed(opened, 100) + 4999
    with pytest.raises(NotEnoughMemory, match=r"tiny\.gguf: .*a KV cache of 100 tokens.*a smaller --max-adapter-bytes"):
        room_for_adapters(config, opened)


def test_adapters_get_what_is_left_if_nothing_is_said(opened: OpenedModel, machine: dict[str, int | None]) -> None:
    config = load_config({"kv_cache_tokens": 100}, {})
    machine["available"] = needed(opened, 100) + 777
    assert room_for_adapters(config, opened) == 777
    machine["available"] = 1 << 50
    assert room_for_adapters(config, opened) == DEFAULT_ADAPTER_BYTES
    machine["available"] = None
    assert room_for_adapters(config, opened) == DEFAULT_ADAPTER_BYTES


def test_a_cache_that_nothing_can_count_is_refused_like_any_other(
    opened: OpenedModel, machine: dict[str, int | None]
) -> None:
    machine["available"] = 1 << 40
    with pytest.raises(NotEnoughMemory, match="a KV cache of 1000000000000000000000 tokens"):
        room_for_adapters(load_config({"kv_cache_tokens": 10**21}, {}), opened)


@pytest.mark.parametrize(("quantization", "is_advised"), [("F32", True), ("Q8_0", False)])
def test_only_a_float_model_is_advised_to_be_quantized(
    tmp_path: Path, machine: dict[str, int | None], quantization: str, is_advised: bool
) -> None:
    machine["available"] = 1
    with pytest.raises(NotEnoughMemory) as caught:
        room_for_adapters(load_config({}, {}), opened_model(tmp_path, "reference", quantization))
    assert ("--quantize q4_k" in str(caught.value)) is is_advised


@pytest.mark.parametrize("kernels", ["native", "triton"])
@pytest.mark.parametrize("tied", [True, False])
def test_for_kernels_with_a_layout_of_their_own_it_is_that_which_must_fit(
    tmp_path: Path, tied: bool, kernels: str
) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_llama_gguf(path, quantization=gguf.GGMLQuantizationType.Q8_0, tied=tied, vocab=96)
    try:
        opened = open_base_model(str(path), base_model_id=None, device="cpu", kernels=kernels, batch_invariant=False)
    except InvalidRequest as error:
        pytest.skip(str(error))
    entries = opened.source.entries
    vectors = sum(entry.nbytes for entry in entries.values() if len(entry.shape) == 1)
    matrices = sum(entry.nbytes for name, entry in entries.items() if len(entry.shape) == 2 and "embd" not in name)
    embedding = entries["token_embd.weight"].nbytes
    # A byte and a sixteenth for each value in the file and in the layout alike, in whole lines of 64 bytes.
    assert opened.memory_needs() == {"weights": vectors + matrices + embedding * (2 if tied else 1)}


def test_nothing_is_read_before_it_is_known_to_fit(tmp_path: Path, machine: dict[str, int | None]) -> None:
    opened = opened_model(tmp_path, "reference")
    with (tmp_path / "tiny.gguf").open("r+b") as file:  # whoever reads a tensor now is told that the file is cut off
        file.truncate(opened.source.entries["token_embd.weight"].offset)
    machine["available"] = 1
    with pytest.raises(NotEnoughMemory):
        room_for_adapters(load_config({}, {}), opened)
