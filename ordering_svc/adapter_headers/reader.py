"""Finds the adapters that a document names, as the inference service finds them, and reads their headers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ordering_svc.allowed_roots import AllowedRoots
from ordering_svc.domain.adapter_validation import CONFIG_NAME, TENSORS_NAME
from ordering_svc.domain.classifier_validation import PEFT_LAYERS
from ordering_svc.domain.headers import (
    AdapterFiles,
    AdapterHeaders,
    FaultKind,
    FileFault,
    JsonConfig,
    NamedAdapter,
    TensorHeaders,
    XLoraFiles,
)
from ordering_svc.domain.ordering import AdapterKind, OrderingDocument
from ordering_svc.domain.problems import shown
from ordering_svc.errors import InvalidRequest, PathNotAllowed
from ordering_svc.file_headers.files import UnreadableFile
from ordering_svc.file_headers.json_object import read_json_object
from ordering_svc.file_headers.safetensors import read_safetensors_header

XLORA_CONFIG_NAME, CLASSIFIER_NAME = "xlora_config.json", "xlora_classifier.safetensors"
PICKLE_NAME = "adapter_model.bin"
MAX_FILES = 1000  # of a folder, to look at
SHOWN_FOLDERS = 10
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?", re.ASCII)


class AdapterReader:
    """Reads headers; blocking, and safe to use from several threads."""

    def __init__(self, roots: AllowedRoots) -> None:
        self._roots = roots

    def read(self, document: OrderingDocument, place: str, kind: AdapterKind) -> AdapterHeaders:
        """What is at `place` and at the places of `preload_adapters`; never raises: what cannot be read is a fault."""
        folder = self._folder(place) if place else _unsaid()
        xlora = None
        if isinstance(folder, Path):
            xlora = self._xlora(folder, len(document.order or ()), is_expected=kind is AdapterKind.XLORA)
        return AdapterHeaders(xlora, self._adapters(document, folder, xlora))

    def _adapters(
        self, document: OrderingDocument, folder: Path | FileFault, xlora: XLoraFiles | None
    ) -> Iterator[NamedAdapter]:
        order, preload = document.order or (), document.preload_adapters or ()
        is_peft = xlora is not None and xlora.is_peft
        preloaded = set() if xlora is not None else {adapter.name for adapter in preload}
        asked = [(index, name) for index, name in enumerate(order) if name not in preloaded]
        if isinstance(folder, FileFault):  # said once, not for each of them
            if asked:
                yield NamedAdapter("", "order", 0, folder)
        else:
            for index, name in asked:
                # PEFT knows the adapters of an X-LoRA by number.
                files = self._sub_folder(folder, str(index)) if is_peft else self._of_order(name, folder, len(order))
                yield NamedAdapter(name, f"order[{index}]", index, files)
        for index, adapter in enumerate(preload):
            found = self._folder(adapter.adapter_model_id)
            if isinstance(found, Path) and not (found / CONFIG_NAME).exists():
                files = self._sub_folder(found, adapter.name)
            else:
                files = self._files(found, found.name) if isinstance(found, Path) else found
            yield NamedAdapter(adapter.name, f"preload_adapters[{index}].adapter_model_id", index, files)

    def _of_order(self, name: str, folder: Path, count: int) -> AdapterFiles | FileFault:
        try:
            is_itself = count == 1 and (folder / CONFIG_NAME).exists() and not (folder / name).is_dir()
        except (OSError, ValueError):  # a name that no folder can have
            is_itself = False
        return self._files(folder, folder.name) if is_itself else self._sub_folder(folder, name)

    def _folder(self, place: str) -> Path | FileFault:
        """The folder that a place names; one that is not here may be a hub id."""
        try:
            folder = self._roots.find(place, "adapter_model_id")
            if folder.is_dir():
                return folder
        except PathNotAllowed as error:
            return FileFault(FaultKind.OUTSIDE, shown(place), f"{error.message[0].upper()}{error.message[1:]}.")
        except (InvalidRequest, OSError):
            return FileFault(FaultKind.MISSING, shown(place), f"`{shown(place)}` is no path of a folder.")
        if _HUB_ID.fullmatch(place):
            message = f"`{place}` is no folder here: taken for a hub id, so its files were not looked at."
            return FileFault(FaultKind.UNKNOWN_PLACE, place, message)
        return FileFault(FaultKind.MISSING, shown(place), f"There is no folder `{shown(place)}`.")

    def _sub_folder(self, folder: Path, name: str) -> AdapterFiles | FileFault:
        try:
            there = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        except OSError as error:
            return FileFault(FaultKind.MISSING, folder.name, f"{folder.name} cannot be read: {error.strerror}.")
        if name not in there:
            listed = ", ".join(f"`{shown(other)}`" for other in there[:SHOWN_FOLDERS]) or "none"
            more = f" and {len(there) - SHOWN_FOLDERS} more" if len(there) > SHOWN_FOLDERS else ""
            message = f"There is no folder `{shown(name)}` in {folder.name}; its folders: {listed}{more}."
            return FileFault(FaultKind.MISSING, shown(name), message)
        if not self._roots.contains((folder / name).resolve()):
            message = f"The folder `{shown(name)}` is a link to outside the folders that may be read."
            return FileFault(FaultKind.OUTSIDE, shown(name), message)
        return self._files(folder / name, name)

    def _files(self, folder: Path, name: str) -> AdapterFiles:
        shown_name = shown(name)
        names: list[str] = []
        for entry in folder.iterdir():
            if len(names) == MAX_FILES:
                break
            if entry.is_file():
                names.append(entry.name)
        return AdapterFiles(
            shown_name,
            self._config(folder / CONFIG_NAME, f"{shown_name}/{CONFIG_NAME}"),
            self._tensors(folder / TENSORS_NAME, f"{shown_name}/{TENSORS_NAME}"),
            tuple(sorted(names)),
        )

    def _xlora(self, folder: Path, count: int, *, is_expected: bool) -> XLoraFiles | None:
        config = self._config(folder / CONFIG_NAME, CONFIG_NAME)
        has_own = (folder / XLORA_CONFIG_NAME).exists() or (folder / CLASSIFIER_NAME).exists()
        if not has_own and not isinstance(config, FileFault) and config.get("peft_type") == "XLORA":
            tensors = self._tensors(folder / TENSORS_NAME, TENSORS_NAME)
            if not isinstance(tensors, FileFault):
                tensors = self._with_lost_layers(tensors, config, folder, count)
            return XLoraFiles(True, CONFIG_NAME, config, TENSORS_NAME, tensors)
        if not has_own and not is_expected:
            return None
        own = self._config(folder / XLORA_CONFIG_NAME, XLORA_CONFIG_NAME)
        return XLoraFiles(
            False, XLORA_CONFIG_NAME, own, CLASSIFIER_NAME, self._tensors(folder / CLASSIFIER_NAME, CLASSIFIER_NAME)
        )

    def _with_lost_layers(self, tensors: TensorHeaders, config: JsonConfig, folder: Path, count: int) -> TensorHeaders:
        """A classifier, and those of its layers that PEFT wrote, without their number, to the file of an adapter."""
        depth, present = config.get("xlora_depth", 1), sum(name.endswith(".weight") for name in tensors)
        found = dict(tensors)
        for index in range(count if isinstance(depth, int) and present < depth else 0):
            path, prefix = folder / str(index) / TENSORS_NAME, f"{PEFT_LAYERS}{index}."
            expert = self._tensors(path, f"{index}/{TENSORS_NAME}") if path.exists() else {}
            if not isinstance(expert, FileFault) and f"{prefix}weight" not in tensors:
                parts = [part for part in ("weight", "bias") if f"{PEFT_LAYERS}{part}" in expert]
                found |= {f"{prefix}{part}": expert[f"{PEFT_LAYERS}{part}"] for part in parts}
        return found

    def _config(self, path: Path, file: str) -> JsonConfig | FileFault:
        try:
            return read_json_object(path, file, self._roots)
        except UnreadableFile as error:
            return error.fault

    def _tensors(self, path: Path, file: str) -> TensorHeaders | FileFault:
        try:
            return read_safetensors_header(path, file, self._roots)
        except UnreadableFile as error:
            if error.fault.kind is FaultKind.MISSING and path.with_name(PICKLE_NAME).exists():
                message = f"There is no {file}, only {PICKLE_NAME}: that is a pickle, which could run code."
                return FileFault(FaultKind.MISSING, file, message)
            return error.fault


def _unsaid() -> FileFault:
    message = "Nobody said where the adapters of order are, so their files were not looked at."
    return FileFault(FaultKind.UNKNOWN_PLACE, "", message)
