"""Loading an adapter folder of whatever kind it is."""

from __future__ import annotations

from pathlib import Path

from inference_svc.adapters.base_model import AdapterLimits, BaseModelShape
from inference_svc.adapters.lora import LoadedLora, load_lora
from inference_svc.adapters.peft_config import CONFIG_NAME
from inference_svc.adapters.xlora import LoadedXLora, load_xlora
from inference_svc.adapters.xlora_config import PEFT, layout_of
from inference_svc.errors import AdapterUnsupported, SourceNotFound

Loaded = LoadedLora | LoadedXLora


def load_from(folder: Path, base: BaseModelShape, limits: AdapterLimits) -> Loaded:
    """Load a folder that needs no ordering: a LoRA adapter, or an X-LoRA in PEFT's layout.

    Raises:
        SourceNotFound: the folder, or an adapter in it, is not there.
        AdapterUnsupported: it holds an X-LoRA in the original layout, which only an ordering can describe.
        InferenceError: whatever `load_lora` and `load_xlora` raise.
    """
    if not folder.is_dir():
        raise SourceNotFound(f"there is no adapter folder {folder.name!r}", source=folder.name)
    layout = layout_of(folder)
    if layout is PEFT:
        return load_xlora(folder, (), {}, base, limits)
    if layout is not None:
        raise AdapterUnsupported(
            f"{folder.name} holds an X-LoRA, which says neither the order of its adapters nor the rows of its layers: "
            "apply an ordering that has both",
            source=folder.name,
        )
    if not is_lora(folder):
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
        raise SourceNotFound(f"{folder.name} has no {CONFIG_NAME}; it has {names}", source=folder.name)
    return load_lora(folder, base, limits)


def is_xlora(folder: Path) -> bool:
    """The folder holds an X-LoRA, in either layout."""
    return layout_of(folder) is not None


def is_lora(folder: Path) -> bool:
    """The folder holds one LoRA adapter."""
    return (folder / CONFIG_NAME).is_file() and not is_xlora(folder)
