"""Puts the service together: model, adapters, engine, orderings."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import torch

from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.loading import load_from
from inference_svc.adapters.loading_threads import LoadingThreads
from inference_svc.adapters.needed_files import needed_files
from inference_svc.adapters.ordering import OrderingApplier
from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.residency import ResidencyWatch
from inference_svc.adapters.resident import ActiveSet, ResidentAdapter
from inference_svc.adapters.selection import Selection
from inference_svc.config import Config, StartError
from inference_svc.engine.engine import Engine, EngineConfig
from inference_svc.engine.observer import EngineObserver
from inference_svc.errors import InferenceError
from inference_svc.memory_plan import room_for_adapters
from inference_svc.metrics import EngineMetrics
from inference_svc.models.base_model import BaseModel, open_base_model
from inference_svc.rpc.ordering_client import OrderingClient
from inference_svc.rpc.ordering_copies import OrderingCopies
from inference_svc.rpc.ordering_desk import OrderingDesk, described
from inference_svc.rpc.ordering_follower import OrderingFollower
from inference_svc.rpc.ports import Service
from inference_svc.scheduling.granularity import parse_granularity
from inference_svc.tokenization.errors import TokenizationError
from inference_svc.weights.errors import WeightsError
from inference_svc.weights.in_situ import Scheme
from inference_svc.weights.load_progress import shown_progress
from inference_svc.weights.locate import locate_adapter

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The fields of the contract's `Model` that the loaded model decides."""

    base_model_id: str
    architecture: str
    quantization: str
    vocab_size: int
    num_layers: int
    weight_bytes: int
    device: str
    kernels: str
    batch_invariant: bool
    adapter_modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdapterFolders:
    """The registry, filled from folders inside the allowed roots and from the hub."""

    registry: AdapterRegistry
    roots: Sequence[Path]
    threads: LoadingThreads

    def locate(self, source: str, folders: Sequence[str] = ()) -> Path:
        """The local folder of a folder's name or a hub id; of a repository, with these of its sub-folders.

        Raises WeightsError or InferenceError.
        """
        return locate_adapter(
            source, self.roots, lambda listing: needed_files(listing, folders), self.registry.limits.max_bytes
        )

    async def load(
        self, name: str, source: str, *, replace: bool, expected_digest: str | None, pinned: bool
    ) -> ResidentAdapter:
        """Load, check and register an adapter. Raises InferenceError or WeightsError."""
        registry = self.registry
        registry.check_load(name, replace=replace, expected_digest=expected_digest)

        def load() -> ResidentAdapter:
            loaded = load_from(self.locate(source), registry.base, registry.limits)
            return registry.load(
                name, loaded, source=source, replace=replace, expected_digest=expected_digest, pinned=pinned
            )

        return await self.threads.run(load)

    def unload(self, name: str, *, expected_digest: str | None) -> ResidentAdapter:
        """Take an adapter away from later requests. Raises AdapterNotFound, AdapterInUse, DigestMismatch."""
        return self.registry.unload(name, expected_digest=expected_digest)

    def pin(self, name: str, pinned: bool) -> ResidentAdapter:
        """Keep an adapter from being evicted, or no longer. Raises AdapterNotFound."""
        return self.registry.pin(name, pinned)

    def watch(self, resume_token: str | None, on_ready: Callable[[], None]) -> ResidencyWatch:
        """Be told of every change. Raises InvalidRequest."""
        return self.registry.watch(resume_token, on_ready)

    def get(self, name: str) -> ResidentAdapter:
        """One adapter. Raises AdapterNotFound."""
        return self.registry.get(name)

    def list_all(self) -> Sequence[ResidentAdapter]:
        """All adapters by name."""
        return self.registry.list_all()

    def activate(self, selection: Selection) -> ActiveSet:
        """Replace the active default. Raises AdapterNotFound, AdapterWrongKind, InvalidRequest."""
        return self.registry.activate(selection)

    def active(self) -> ActiveSet:
        """The active default."""
        return self.registry.active


async def open_service(config: Config) -> Service:
    """Load the model, start the engine, apply the orderings; the engine runs when this returns.

    Raises:
        StartError: something cannot be loaded, applied or allocated.
    """
    base, adapter_bytes = await asyncio.to_thread(_load_model, config)
    limits = AdapterLimits(config.max_adapters, config.max_rank, adapter_bytes, evict=config.eviction == "lru")
    engine: Engine | None = None
    # On a GPU the cores that steps wait for are not those that loads run on.
    on_cpu = base.device.type == "cpu"
    threads = LoadingThreads(lambda: on_cpu and engine is not None and engine.num_unfinished > 0)
    adapters = AdapterFolders(AdapterRegistry(base.shape, limits, base.executor.prepare), config.adapter_roots, threads)
    metrics = None if config.metrics_port is None else EngineMetrics()
    engine = await asyncio.to_thread(_make_engine, config, base, adapters.registry, metrics)
    if metrics is not None:
        metrics.watch(engine, adapters.registry)
    orderings = OrderingClient(config.ordering_address)
    copies = OrderingCopies(config.data_dir / "orderings")
    applier = OrderingApplier(adapters.registry, adapters.locate, base.shape, limits)
    desk = OrderingDesk(orderings, copies, applier, adapters, threads)
    follower = OrderingFollower(orderings, desk) if config.follow else None
    try:
        for reference in config.orderings:
            await _apply_at_start(desk, reference)
    except BaseException:
        threads.close()
        await orderings.close()
        raise
    if follower is not None:
        follower.start(config.orderings)

    async def close() -> None:
        if follower is not None:
            await follower.close()
        threads.close()
        await orderings.close()

    engine.start()
    description = _description(base, config)
    _log_start(config, base, engine, adapters, description)
    version = importlib.metadata.version("loramux")
    return Service(
        engine,
        base.tokenizer,
        description,
        adapters,
        desk,
        version,
        close,
        tuple if follower is None else follower.states,
        () if metrics is None else (metrics,),
    )


def _load_model(config: Config) -> tuple[BaseModel, int]:
    """The model, and the bytes that adapters may take."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise StartError("--device cuda: no CUDA device that this torch can use; `auto` takes the CPU then")
    try:
        with shown_progress(config.log_format) as on_progress:
            opened = open_base_model(
                config.model,
                base_model_id=config.base_model_id,
                device=config.device,
                kernels=config.kernels,
                batch_invariant=config.batch_invariant,
                quantize=None if config.quantize is None else Scheme(config.quantize),
                on_progress=on_progress,
                before_download=partial(room_for_adapters, config),
            )
            adapter_bytes = room_for_adapters(config, opened)
            return opened.load(longest=config.kv_cache_tokens), adapter_bytes
    except (WeightsError, TokenizationError, InferenceError) as error:
        sentence = str(error)  # most name the model themselves
        named = sentence if sentence.startswith(config.model) else f"{config.model}: {sentence}"
        raise StartError(f"--model {named}") from error


def _make_engine(config: Config, base: BaseModel, registry: AdapterRegistry, observer: EngineObserver | None) -> Engine:
    engine_config = EngineConfig(
        max_batch_tokens=config.max_batch_tokens,
        max_running=config.max_running,
        max_waiting=config.max_waiting,
        kv_cache_tokens=config.kv_cache_tokens,
        speculative_tokens=config.speculative_tokens,
        prefix_caching=config.prefix_caching,
        context_length=config.context_length,
        granularity=parse_granularity(config.xlora_granularity),
    )
    try:
        return Engine(base, registry, engine_config, observer)
    except (RuntimeError, MemoryError) as error:
        first_line = (str(error).splitlines() or ["out of memory"])[0]
        raise StartError(f"--kv-cache-tokens {config.kv_cache_tokens}: no room for the cache ({first_line})") from error


async def _apply_at_start(desk: OrderingDesk, reference: str) -> None:
    try:
        await desk.apply_at_start(reference)
    except (InferenceError, WeightsError) as error:
        raise StartError(f"--ordering {reference}: {error}") from error


def _description(base: BaseModel, config: Config) -> ServedModel:
    return ServedModel(
        base_model_id=base.shape.base_model_id,
        architecture=base.shape.architecture,
        quantization=base.quantization,
        vocab_size=base.config.vocab_size,
        num_layers=base.config.num_layers,
        weight_bytes=base.weight_bytes,
        device=str(base.device),
        kernels=base.executor.name,
        batch_invariant=config.batch_invariant,
        adapter_modules=tuple(dict.fromkeys(path.rpartition(".")[2] for path in base.shape.linear_shapes)),
    )


def _log_start(
    config: Config, base: BaseModel, engine: Engine, adapters: AdapterFolders, description: ServedModel
) -> None:
    _log.info(
        "model loaded",
        model=config.model,
        base_model_id=description.base_model_id,
        architecture=description.architecture,
        quantization=description.quantization,
        weight_bytes=description.weight_bytes,
        device=description.device,
        kernels=description.kernels,
        weights_notice=base.weights_notice,
        kernels_notice=base.kernels_notice,
        batch_invariant=config.batch_invariant,
        threads=torch.get_num_threads(),
        context_length=engine.context_length,
        kv_cache_tokens=config.kv_cache_tokens,
        prefix_caching=config.prefix_caching,
        max_adapter_bytes=adapters.registry.limits.max_bytes,
        adapters=[adapter.name for adapter in adapters.list_all()],
        active=described(adapters.active().selection),
    )
