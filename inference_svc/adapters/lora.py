"""A PEFT LoRA or DoRA adapter: its configuration and tensors to the matrices that the layers apply."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from inference_svc.adapters.adapter_files import ContentDigest, all_finite, file_state, read_adapter_tensors
from inference_svc.adapters.bank import AdapterBank, LinearDelta
from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape, summary
from inference_svc.adapters.dora import magnitude_ratios
from inference_svc.adapters.expert_tensors import unfused, unknown_parameters
from inference_svc.adapters.lora_tensors import Findings, LayerTensors, check_targets, find_layers
from inference_svc.adapters.peft_config import CONFIG_NAME, PeftLoraConfig, read_peft_config
from inference_svc.adapters.selection import AdapterKind
from inference_svc.errors import (
    AdapterMalformed,
    AdapterUnfit,
    AdapterUnsupported,
    SourceChanged,
)

TENSORS_NAME = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class LoraMatrices:
    """A and B of one linear layer in the dtype of activations.

    The scale is folded into B, and so is a DoRA's ratio of magnitudes; both are computed in float32.
    """

    a: Tensor  # [rank, in_features]
    b: Tensor  # [out_features, rank]
    base_factor: Tensor | None = None  # float32 [out_features], DoRA only: see LinearDelta


@dataclass(frozen=True, slots=True, eq=False)
class LoraFiles:
    """What a LoRA folder holds, checked against the base model."""

    config: PeftLoraConfig
    matrices: Mapping[str, LoraMatrices]  # by full module path
    classifier: Mapping[str, Tensor]  # what an X-LoRA left in the file of its adapter, by key; no part of the adapter


@dataclass(frozen=True, slots=True, eq=False)
class LoadedLora:
    """A LoRA or DoRA adapter in memory."""

    bank: AdapterBank
    config: PeftLoraConfig
    digest: str  # SHA-256 over its two files, in hex
    rank: int  # the largest of its layers
    target_modules: tuple[str, ...]  # last parts of the module paths, sorted

    @property
    def kind(self) -> AdapterKind:
        """LoRA."""
        return AdapterKind.LORA

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.bank.nbytes


def load_lora(folder: Path, base: BaseModelShape, limits: AdapterLimits) -> LoadedLora:
    """Load a LoRA or DoRA adapter; its tensors are on the base model's device, in the dtype of its activations.

    Raises:
        SourceNotFound: a file is missing.
        SourceChanged: a file changed while it was read.
        AdapterMalformed: a file is broken, or its tensors do not fit each other or the configuration.
        AdapterUnsupported: more than LoRA and DoRA.
        AdapterUnfit: it does not fit the base model.
        LimitReached: rank or bytes.
    """
    digest = ContentDigest()
    files = read_lora_files(folder, base, limits, digest, "", alone=True)
    deltas = {
        path: LinearDelta(m.a, m.b, torch.zeros(m.a.shape[0], dtype=torch.int64, device=base.device), m.base_factor)
        for path, m in files.matrices.items()
    }
    content = digest.hexdigest()
    bank = AdapterBank(digest=content, experts=(folder.name,), deltas=deltas, scaling_rows={})
    return LoadedLora(bank, files.config, content, largest_rank(files), target_modules(files.matrices))


def target_modules(paths: Mapping[str, object]) -> tuple[str, ...]:
    """The last parts of module paths, sorted."""
    return tuple(sorted({path.rsplit(".", 1)[-1] for path in paths}))


def largest_rank(files: LoraFiles) -> int:
    """The largest rank of the layers."""
    return max(m.a.shape[0] for m in files.matrices.values())


def read_lora_files(
    folder: Path,
    base: BaseModelShape,
    limits: AdapterLimits,
    digest: ContentDigest,
    prefix: str,
    *,
    alone: bool = False,
) -> LoraFiles:
    """Read and check a LoRA folder; both files go into `digest` under `prefix`.

    Raises what `load_lora` raises, and AdapterUnsupported for what can only be used `alone`, not as an adapter of a
    mixture: a DoRA, and one on parameters.
    """
    name = f"{folder.name}/{TENSORS_NAME}"
    paths = (folder / CONFIG_NAME, folder / TENSORS_NAME)
    before = tuple(file_state(path) for path in paths)
    config = read_peft_config(folder)
    _check_config(config, folder.name, base, alone)
    if not (folder / TENSORS_NAME).is_file() and (folder / "adapter_model.bin").exists():
        raise AdapterUnsupported(f"{folder.name}/adapter_model.bin is a pickle; save the adapter as safetensors")
    content = hashlib.sha256()
    tensors = read_adapter_tensors(folder / TENSORS_NAME, name, limits.max_bytes, content)
    if before != tuple(file_state(path) for path in paths):
        raise SourceChanged(f"the files of {folder.name} changed while they were read; load it again", file=name)
    digest.add_hash(f"{prefix}{CONFIG_NAME}", hashlib.sha256(config.content))
    digest.add_hash(f"{prefix}{TENSORS_NAME}", content)
    if not tensors:
        raise AdapterMalformed(f"{name} holds no tensors", file=name)
    findings = Findings(name)
    if config.targets is not None and config.targets.parameters:
        tensors = unfused(tensors, base, findings.malformed)
    found = find_layers(tensors, config, base, findings)
    check_targets(found, config, base, findings)
    matrices = {}
    for path, layer in found.layers.items():
        if _fits(path, layer, config, base, limits, findings):
            matrices[path] = _matrices(path, layer, config, base, findings)
    findings.raise_if_any()
    return LoraFiles(config, matrices, found.classifier)


def _check_config(config: PeftLoraConfig, folder: str, base: BaseModelShape, alone: bool) -> None:
    if base.is_another_model(config.base_model_id):
        raise AdapterUnfit(
            f"{folder}/{CONFIG_NAME}: the adapter was trained for base model {config.base_model_id!r}, "
            f"loaded is {base.base_model_id!r}",
            adapter_base=config.base_model_id,
            base=base.base_model_id,
        )
    parameters = frozenset() if config.targets is None else config.targets.parameters
    if unknown := unknown_parameters(parameters, base):
        raise AdapterUnsupported(
            f"{folder}/{CONFIG_NAME}: `target_parameters` {summary(unknown)[:200]}: adapters can be on linear layers "
            f"and on the experts of a Mixtral; the base model is a {base.architecture}",
            key="target_parameters",
        )
    if parameters and not alone:
        raise AdapterUnsupported(
            f"{folder}/{CONFIG_NAME}: `target_parameters` {summary(sorted(parameters))[:200]}: an X-LoRA weighs what "
            "modules put out; parameters, as of fused experts, PEFT itself cannot run in one: train its adapters on "
            "`target_modules` alone",
            key="target_parameters",
        )
    if config.use_dora and not alone:
        raise AdapterUnsupported(
            f"{folder}/{CONFIG_NAME}: `use_dora`: a DoRA cannot be an adapter of an X-LoRA", key="use_dora"
        )


def _fits(
    path: str,
    layer: LayerTensors,
    config: PeftLoraConfig,
    base: BaseModelShape,
    limits: AdapterLimits,
    findings: Findings,
) -> bool:
    """Report what does not fit; True if everything does."""
    a, b = layer.a, layer.b
    if a is None or b is None or layer.is_broken:
        return False
    rank = a.shape[0]
    if b.shape[1] != rank or rank == 0:
        shapes = f"lora_A has shape {list(a.shape)} and lora_B {list(b.shape)}"
        findings.malformed.append(f"`{path}`: {shapes}: ranks must be equal and at least 1")
        return False
    shape = base.linear_shapes.get(path)
    if shape is None:
        findings.unfit.append(f"`{path}` is not a linear layer of the base model")
        return False
    fits = True
    if (b.shape[0], a.shape[1]) != shape:
        findings.unfit.append(
            f"`{path}`: the adapter is for (out, in) = ({b.shape[0]}, {a.shape[1]}), the base model has {shape}"
        )
        fits = False
    elif layer.magnitude is not None and layer.magnitude.shape != (shape[0],):
        found = list(layer.magnitude.shape)
        findings.malformed.append(f"`{path}`: lora_magnitude_vector has shape {found}, expected [{shape[0]}]")
        fits = False
    if rank != config.rank_for(path):
        findings.unfit.append(f"`{path}`: the tensors have rank {rank}, {CONFIG_NAME} says {config.rank_for(path)}")
        fits = False
    if rank > limits.max_rank:
        findings.over_limit.append(f"`{path}`: rank {rank} is above the limit of {limits.max_rank}")
        fits = False
    return fits


def _matrices(
    path: str, layer: LayerTensors, config: PeftLoraConfig, base: BaseModelShape, findings: Findings
) -> LoraMatrices:
    """What the layer computes with; numbers that overflow go into the findings."""
    assert layer.a is not None
    assert layer.b is not None
    a = layer.a.to(base.device, torch.float32).contiguous()
    b = (layer.b.to(base.device, torch.float32) * config.scale_for(path)).contiguous()
    if not all_finite(b):
        findings.malformed.append(f"`{path}`: lora_B times the scale {config.scale_for(path)} overflows")
    if layer.magnitude is None:
        return LoraMatrices(a.to(base.dtype), b.to(base.dtype))
    magnitude = layer.magnitude.to(base.device, torch.float32)
    ratios = magnitude_ratios(base.weights[path], a, b, magnitude)
    if not all_finite(ratios):
        row = int((~ratios.isfinite()).to(torch.int8).argmax())
        findings.malformed.append(f"`{path}`: row {row} of the adapted weight has norm 0, which DoRA divides by")
    return LoraMatrices(a.to(base.dtype), (b * ratios[:, None]).to(base.dtype), ratios - 1.0)
