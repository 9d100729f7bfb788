"""The composition with the real model: it starts, says what it serves, and refuses to start in one sentence."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from inference_svc.config import Config, StartError, load_config
from inference_svc.rpc import ordering_client
from inference_svc.server import running
from inference_svc.service import open_service
from loramux.inference.v1 import (
    adapter_service_pb2,
    adapter_service_pb2_grpc,
    inference_service_pb2,
    inference_service_pb2_grpc,
)


@pytest.fixture
def config(smollm2_gguf: Path, tmp_path: Path) -> Config:
    (tmp_path / "adapters").mkdir()
    flags = {
        "model": str(smollm2_gguf),
        "base_model_id": "org/smol",
        "listen": "127.0.0.1:0",
        "ordering_address": "127.0.0.1:1",
        "adapter_roots": (tmp_path / "adapters",),
        "data_dir": tmp_path,
        "device": "cpu",
        "kernels": "reference",
        "batch_invariant": True,
        "context_length": 256,
        "kv_cache_tokens": 512,
    }
    return load_config(flags, {})


async def test_the_whole_service_starts_and_says_what_it_serves(config: Config, tmp_path: Path) -> None:
    async with running(config, open_service) as address, grpc.aio.insecure_channel(address) as channel:
        model = await inference_service_pb2_grpc.InferenceServiceStub(channel).GetModel(
            inference_service_pb2.GetModelRequest()
        )
        assert (model.base_model_id, model.architecture, model.quantization) == ("org/smol", "llama", "Q4_1")
        assert (model.context_length, model.vocab_size, model.num_layers) == (256, 49152, 30)
        assert (model.device, model.kernels, model.batch_invariant) == ("cpu", "reference", True)
        assert {"q_proj", "down_proj", "lm_head"} <= set(model.adapter_modules)
        assert 50_000_000 < model.weight_bytes < 150_000_000

        adapters = adapter_service_pb2_grpc.AdapterServiceStub(channel)
        listed = await adapters.ListAdapters(adapter_service_pb2.ListAdaptersRequest())
        assert (len(listed.adapters), listed.active.selection.HasField("base")) == (0, True)
        for source, code in (
            ("/etc", grpc.StatusCode.PERMISSION_DENIED),
            ("../x", grpc.StatusCode.PERMISSION_DENIED),
            ("file:///etc", grpc.StatusCode.PERMISSION_DENIED),
            ("nothing", grpc.StatusCode.NOT_FOUND),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await adapters.LoadAdapter(adapter_service_pb2.LoadAdapterRequest(adapter_id="x", source=source))
            assert caught.value.code() is code, source


async def test_a_model_that_is_not_there_is_named(config: Config) -> None:
    with pytest.raises(StartError, match=r"--model /no/such\.gguf"):
        await open_service(config.model_copy(update={"model": "/no/such.gguf"}))


async def test_a_cache_that_does_not_fit_is_named(config: Config) -> None:
    with pytest.raises(StartError, match=r"\(a KV cache of \d+ tokens\) = .* take a smaller --kv-cache-tokens"):
        await open_service(config.model_copy(update={"kv_cache_tokens": 10**13}))


async def test_adapters_that_do_not_fit_beside_the_model_are_named(config: Config) -> None:
    with pytest.raises(StartError, match=r"\(adapters\) = .* a smaller --max-adapter-bytes"):
        await open_service(config.model_copy(update={"max_adapter_bytes": 10**15}))


async def test_a_packed_model_is_not_quantized_again(config: Config) -> None:
    with pytest.raises(StartError, match=r"cannot be quantized to q4_k.*leave --quantize away"):
        await open_service(config.model_copy(update={"quantize": "q4_k"}))


async def test_an_ordering_that_cannot_be_had_is_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering_client, "RETRY_DELAYS_SECONDS", ())
    with pytest.raises(StartError, match=r"--ordering demo: the ordering service at 127\.0\.0\.1:1"):
        await open_service(config.model_copy(update={"orderings": ("demo",)}))
