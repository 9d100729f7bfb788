"""A PEFT LoRA adapter: `adapter_config.json` and `adapter_model.safetensors` to the matrices that the layers apply."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from inference_svc.adapters.adapter_files import ContentDigest, file_state, read_adapter_tensors, tensor_problem
from inference_svc.adapters.bank import AdapterBank, LinearDelta
from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape, summary
from inference_svc.adapters.peft_config import CONFIG_NAME, PeftLoraConfig, read_peft_config
from inference_svc.adapters.selection import AdapterKind
from inference_svc.errors import (
    AdapterMalformed,
    AdapterUnfit,
    AdapterUnsupported,
    InferenceError,
    LimitReached,
)

TENSORS_NAME = "adapter_model.safetensors"

_KEY = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<half>[AB])(\.default)?\.weight")
# Parts of keys that plain LoRA does not have, and what they belong to.
_UNSUPPORTED_PARTS: Mapping[str, str] = {
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_": "an adapted embedding",
    "modules_to_save": "a module saved whole",
    ".base_layer.": "a base weight",
    "trainable_tokens": "trained tokens",
    ".bias": "a bias",
}


@dataclass(frozen=True, slots=True, eq=False)
class LoraMatrices:
    """A and B of one linear layer, float32, with the scale folded into B."""

    a: Tensor  # [rank, in_features]
    b: Tensor  # [out_features, rank]


@dataclass(frozen=True, slots=True, eq=False)
class LoraFiles:
    """What a LoRA folder holds, checked against the base model."""

    config: PeftLoraConfig
    matrices: Mapping[str, LoraMatrices]  # by full module path


@dataclass(frozen=True, slots=True, eq=False)
class LoadedLora:
    """A LoRA adapter in memory."""

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
    """Load a LoRA adapter; its tensors are float32 on the base model's device.

    Raises:
        SourceNotFound: a file is missing.
        AdapterMalformed: a file is broken, or its tensors do not fit each other.
        AdapterUnsupported: more than plain LoRA.
        AdapterUnfit: it does not fit the base model.
        LimitReached: rank or bytes.
    """
    digest = ContentDigest()
    files = read_lora_files(folder, base, limits, digest, "")
    deltas = {
        path: LinearDelta(m.a, m.b, torch.zeros(m.a.shape[0], dtype=torch.int64, device=base.device))
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
    folder: Path, base: BaseModelShape, limits: AdapterLimits, digest: ContentDigest, prefix: str
) -> LoraFiles:
    """Read and check a LoRA folder; both files go into `digest` under `prefix`. Raises what `load_lora` raises."""
    name = f"{folder.name}/{TENSORS_NAME}"
    paths = (folder / CONFIG_NAME, folder / TENSORS_NAME)
    before = tuple(file_state(path) for path in paths)
    config = read_peft_config(folder)
    if base.is_another_model(config.base_model_id):
        raise AdapterUnfit(
            f"{folder.name}/{CONFIG_NAME}: the adapter was trained for base model {config.base_model_id!r}, "
            f"loaded is {base.base_model_id!r}",
            adapter_base=config.base_model_id,
            base=base.base_model_id,
        )
    if not (folder / TENSORS_NAME).is_file() and (folder / "adapter_model.bin").exists():
        raise AdapterUnsupported(f"{folder.name}/adapter_model.bin is a pickle; save the adapter as safetensors")
    digest.add_file(f"{prefix}{CONFIG_NAME}", folder / CONFIG_NAME)
    tensors = read_adapter_tensors(folder / TENSORS_NAME, name, limits.max_bytes)
    digest.add_file(f"{prefix}{TENSORS_NAME}", folder / TENSORS_NAME)
    if not tensors:
        raise AdapterMalformed(f"{name} holds no tensors", file=name)
    findings = _Findings(name)
    pairs = _pairs(tensors, findings)
    matrices = {}
    for path, (a, b) in pairs.items():
        if _fits(path, a, b, config, base, limits, findings):
            scaled = b.to(base.device, torch.float32) * config.scale_for(path)
            if not bool(scaled.isfinite().all()):
                findings.malformed.append(f"`{path}`: lora_B times the scale {config.scale_for(path)} overflows")
            matrices[path] = LoraMatrices(a.to(base.device, torch.float32).contiguous(), scaled.contiguous())
    findings.raise_if_any()
    if before != tuple(file_state(path) for path in paths):
        raise AdapterMalformed(f"{name} changed while it was read; load it again", file=name)
    return LoraFiles(config, matrices)


@dataclass(slots=True)
class _Findings:
    """All problems of one file; the most basic kind decides the error."""

    name: str
    malformed: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    over_limit: list[str] = field(default_factory=list)

    def raise_if_any(self) -> None:
        """Raise one error that lists them."""
        kinds: tuple[tuple[type[InferenceError], list[str]], ...] = (
            (AdapterMalformed, self.malformed),
            (AdapterUnsupported, self.unsupported),
            (AdapterUnfit, self.unfit),
            (LimitReached, self.over_limit),
        )
        problems = [problem for _, found in kinds for problem in found]
        for error, found in kinds:
            if found:
                raise error(f"{self.name}: {summary(problems)}", file=self.name, problems=str(len(problems)))


def _pairs(tensors: Mapping[str, Tensor], findings: _Findings) -> dict[str, tuple[Tensor, Tensor]]:
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(tensors.items()):
        match = _KEY.fullmatch(key)
        part = next((what for part, what in _UNSUPPORTED_PARTS.items() if part in key), None)
        if match is None and part is not None:
            findings.unsupported.append(f"`{key}` is {part}, which is not supported")
        elif match is None and "lora_" not in key and key.endswith(".weight"):
            findings.unsupported.append(f"`{key}` is a whole weight, not LoRA, which is not supported")
        elif match is None:
            findings.malformed.append(f"`{key}` is not a LoRA tensor (base_model.model.PATH.lora_A.weight or lora_B)")
        elif match["half"] in halves.setdefault(match["path"], {}):
            findings.malformed.append(f"`{key}` is there twice, with and without `.default`")
        elif problem := tensor_problem(key, tensor, dimensions=2):
            findings.malformed.append(problem)
            halves[match["path"]][match["half"]] = tensor.new_empty(0)
        else:
            halves[match["path"]][match["half"]] = tensor
    pairs = {}
    for path, found in halves.items():
        if missing := {"A", "B"} - found.keys():
            findings.malformed.append(f"`{path}` lacks lora_{missing.pop()}")
        elif all(half.dim() == 2 for half in found.values()):
            pairs[path] = (found["A"], found["B"])
    return pairs


def _fits(
    path: str,
    a: Tensor,
    b: Tensor,
    config: PeftLoraConfig,
    base: BaseModelShape,
    limits: AdapterLimits,
    findings: _Findings,
) -> bool:
    """Report what does not fit; True if everything does."""
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
    if rank != config.rank_for(path):
        findings.unfit.append(f"`{path}`: the tensors have rank {rank}, {CONFIG_NAME} says {config.rank_for(path)}")
        fits = False
    if rank > limits.max_rank:
        findings.over_limit.append(f"`{path}`: rank {rank} is above the limit of {limits.max_rank}")
        fits = False
    return fits
