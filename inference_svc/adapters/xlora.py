"""An X-LoRA mixture: a classifier, and one sub-folder with a LoRA adapter for each expert."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from inference_svc.adapters.adapter_files import ContentDigest, file_state
from inference_svc.adapters.bank import AdapterBank, LinearDelta
from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape, summary
from inference_svc.adapters.classifier import Classifier, XLoraConfig
from inference_svc.adapters.lora import LoraFiles, largest_rank, read_lora_files, target_modules
from inference_svc.adapters.selection import AdapterKind
from inference_svc.adapters.xlora_classifier import classifier_from, read_classifier_file, with_lost_layers
from inference_svc.adapters.xlora_config import (
    ORIGINAL,
    PEFT,
    layout_of,
    peft_adapter_keys,
    read_mixture_file,
    xlora_config_from,
)
from inference_svc.errors import (
    AdapterUnfit,
    OrderingUnfit,
    PathNotAllowed,
    SourceChanged,
    SourceNotFound,
)

MAX_EXPERTS = 256


@dataclass(frozen=True, slots=True, eq=False)
class LoadedXLora:
    """An X-LoRA mixture in memory."""

    bank: AdapterBank  # all experts
    classifier: Classifier
    config: XLoraConfig
    digest: str  # SHA-256 over its files, `order` and `layers`, in hex
    rank: int  # the largest of its experts
    target_modules: tuple[str, ...]  # last parts of the module paths, sorted

    @property
    def kind(self) -> AdapterKind:
        """X-LoRA."""
        return AdapterKind.XLORA

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.bank.nbytes + self.classifier.nbytes


def load_xlora(
    folder: Path, order: Sequence[str], layers: Mapping[str, int], base: BaseModelShape, limits: AdapterLimits
) -> LoadedXLora:
    """Load an X-LoRA mixture in the original layout or in PEFT's, whichever the folder holds.

    Args:
        folder: configuration, classifier, and each adapter's sub-folder: by its name, in PEFT's layout by its number.
        order: names of the adapters in training order; empty: the keys of PEFT's configuration.
        layers: module path -> row of the classifier; empty: PEFT's rows, in the order of the model's modules.
        base: the model that it must fit.
        limits: what it may take.

    Raises:
        SourceNotFound: a file or an expert's folder is missing; lists the folders that are there.
        SourceChanged: a file changed while it was read.
        AdapterMalformed: a file is broken.
        AdapterUnsupported: something that is not supported.
        AdapterUnfit: it does not fit the base model.
        OrderingUnfit: `order` or `layers` does not fit the adapters.
        LimitReached: rank or bytes.
    """
    layout = layout_of(folder) or ORIGINAL  # whose configuration is then said to be missing
    if layers or layout is ORIGINAL:
        _check_rows(layers)
    paths = (folder / layout.config_name, folder / layout.classifier_name)
    before = tuple(file_state(path) for path in paths)
    if not order and layout is ORIGINAL:
        raise OrderingUnfit("`order` is empty; an X-LoRA needs its adapters in training order")
    file = read_mixture_file(folder, layout)
    names = tuple(order) or peft_adapter_keys(file)
    _check_order(names)
    config = xlora_config_from(file, layout, names)
    if base.is_another_model(config.base_model_id):
        raise AdapterUnfit(
            f"{folder.name}/{layout.config_name}: the mixture was trained for base model {config.base_model_id!r}, "
            f"loaded is {base.base_model_id!r}",
            adapter_base=config.base_model_id,
            base=base.base_model_id,
        )
    folders = [sub_folder(folder, str(i) if layout is PEFT else name) for i, name in enumerate(names)]
    digest = ContentDigest()
    digest.add_hash(layout.config_name, hashlib.sha256(file.content))
    tensors = read_classifier_file(folder, layout, limits, digest)
    # The same files in another order are another mixture.
    digest.add("ordering", json.dumps([list(names), sorted(layers.items())]).encode())
    experts = [read_lora_files(path, base, limits, digest, f"{index}/") for index, path in enumerate(folders)]
    if layout is PEFT:
        tensors = with_lost_layers(tensors, folder, config, [expert.classifier for expert in experts])
    rows = dict(layers) or _rows_in_module_order(experts, base)
    _check_layers(experts, rows)
    classifier = classifier_from(tensors, folder, layout, config, len(names), len(rows), base)
    if before != tuple(file_state(path) for path in paths):
        raise SourceChanged(f"the files of {folder.name} changed while they were read; load it again")
    deltas = {path: _joined(path, experts) for path in rows}
    content = digest.hexdigest()
    return LoadedXLora(
        bank=AdapterBank(digest=content, experts=names, deltas=deltas, scaling_rows=rows),
        classifier=classifier,
        config=config,
        digest=content,
        rank=max(largest_rank(expert) for expert in experts),
        target_modules=target_modules(deltas),
    )


def sub_folder(folder: Path, name: str) -> Path:
    """The sub-folder with exactly this name.

    Raises:
        SourceNotFound: there is none; lists those there are.
        PathNotAllowed: it is a link that leads elsewhere.
    """
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if name not in folders:
        listed = ", ".join(folders[:20]) or "none"
        if len(folders) == 1:
            files = sorted(path.name for path in (folder / folders[0]).iterdir())[:10]
            listed += f" (with {', '.join(files) or 'no files'})"
        raise SourceNotFound(f"{folder.name} has no sub-folder `{name}`; its sub-folders: {listed}", adapter=name)
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise PathNotAllowed(f"{folder.name}/{name} is a link to a place outside of {folder.name}", adapter=name)
    return folder / name


def _check_order(order: Sequence[str]) -> None:
    if len(order) > MAX_EXPERTS:
        raise OrderingUnfit(f"{len(order)} adapters, an X-LoRA may have {MAX_EXPERTS}", limit=str(MAX_EXPERTS))
    name, count = Counter(order).most_common(1)[0]
    if count > 1:
        raise OrderingUnfit(f"`order` names `{name}` more than once", adapter=name)


def _check_rows(layers: Mapping[str, int]) -> None:
    if not layers:
        raise OrderingUnfit("`layers` is empty; an X-LoRA needs the classifier row of each layer")
    if sorted(layers.values()) != list(range(len(layers))):
        wrong = [f"`{path}`: {row}" for path, row in layers.items() if not 0 <= row < len(layers)]
        found = summary(wrong) if wrong else "some row is there twice"
        raise OrderingUnfit(
            f"the rows in `layers` must be 0 to {len(layers) - 1}, each once, for its {len(layers)} layers; {found}"
        )


def _rows_in_module_order(experts: Sequence[LoraFiles], base: BaseModelShape) -> dict[str, int]:
    """The rows of PEFT, which counts the layers that any adapter changes in the order of the model's modules."""
    adapted = {path for expert in experts for path in expert.matrices}
    return {path: row for row, path in enumerate(path for path in base.linear_shapes if path in adapted)}


def _check_layers(experts: Sequence[LoraFiles], layers: Mapping[str, int]) -> None:
    adapted = {path for expert in experts for path in expert.matrices}
    problems = [f"`{path}` has adapter tensors but no entry in `layers`" for path in sorted(adapted - layers.keys())]
    problems += [
        f"`{path}` is in `layers`, but no adapter has tensors for it" for path in layers if path not in adapted
    ]
    if problems:
        raise OrderingUnfit(f"`layers` does not fit the adapters: {summary(problems)}", problems=str(len(problems)))


def _joined(path: str, experts: Sequence[LoraFiles]) -> LinearDelta:
    """Experts side by side; one that does not change this layer contributes no ranks."""
    parts = [(index, expert.matrices[path]) for index, expert in enumerate(experts) if path in expert.matrices]
    owners = [torch.full((m.a.shape[0],), index, dtype=torch.int64, device=m.a.device) for index, m in parts]
    return LinearDelta(
        a=torch.cat([m.a for _, m in parts]).contiguous(),
        b=torch.cat([m.b for _, m in parts], dim=1).contiguous(),
        expert_of_rank=torch.cat(owners),
    )
