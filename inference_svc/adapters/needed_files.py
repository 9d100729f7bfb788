"""Which files of a repository an adapter is made of: nothing else is downloaded."""

from __future__ import annotations

from collections.abc import Sequence

from inference_svc.adapters.lora import TENSORS_NAME
from inference_svc.adapters.peft_config import CONFIG_NAME
from inference_svc.adapters.xlora_config import ORIGINAL, PEFT, layout_of, peft_adapter_keys, read_mixture_file
from inference_svc.errors import AdapterUnsupported, SourceNotFound
from inference_svc.weights.listing import Listing


def needed_files(listing: Listing, folders: Sequence[str]) -> list[str]:
    """Configurations and weights, the small files first.

    Args:
        listing: what there is.
        folders: sub-folders that the caller will read, as an ordering names them: the experts of an X-LoRA in the
            original layout, or LoRA adapters. One alone may stand for a LoRA adapter at the top.

    Raises:
        SourceNotFound: there is no adapter, no such sub-folder, or weights are missing.
        AdapterUnsupported: its weights are a pickle.
        AdapterMalformed: its configuration is broken.
        WeightsError: its configuration cannot be had.
    """
    configs = [name for name in (ORIGINAL.config_name, CONFIG_NAME) if name in listing.sizes]
    if not configs and not folders:
        raise _nothing(listing)
    places = [listing.fetch(name).parent for name in configs]
    layout = layout_of(places[0]) if places else None
    if layout is PEFT:
        folders = [str(index) for index in range(len(peft_adapter_keys(read_mixture_file(places[0], PEFT))))]
    is_lora = bool(configs) and layout is None
    missing = [folder for folder in folders if f"{folder}/{CONFIG_NAME}" not in listing.sizes]
    if missing and not (is_lora and len(folders) == 1):
        raise SourceNotFound(
            f"{listing.name} has no adapter in a sub-folder `{missing[0]}`{_folders(listing)}", adapter=missing[0]
        )
    own = [] if layout is None else [(layout.config_name, _present(listing, layout.classifier_name))]
    prefixes = ([""] if is_lora else []) + [f"{folder}/" for folder in folders if folder not in missing]
    adapters = [(_present(listing, at + CONFIG_NAME), _present(listing, at + TENSORS_NAME)) for at in prefixes]
    pairs = own + adapters
    return [config for config, _ in pairs] + [weights for _, weights in pairs]


def _present(listing: Listing, file: str) -> str:
    if file in listing.sizes:
        return file
    pickle = file.removesuffix(".safetensors") + ".bin"
    if pickle != file and pickle in listing.sizes:
        raise AdapterUnsupported(
            f"{listing.reference(pickle)} is a pickle, which can run code when it is read; save it as safetensors",
            source=listing.name,
        )
    raise SourceNotFound(f"{listing.name} has no {file}{_folders(listing)}", source=listing.name)


def _nothing(listing: Listing) -> SourceNotFound:
    names = ", ".join(sorted(listing.sizes)[:20]) or "nothing"
    return SourceNotFound(
        f"{listing.name} holds no adapter: no {CONFIG_NAME} and no {ORIGINAL.config_name} at its top"
        + (_folders(listing) or f"; it has {names}"),
        source=listing.name,
    )


def _folders(listing: Listing) -> str:
    found = [file.removesuffix(f"/{CONFIG_NAME}") for file in sorted(listing.sizes) if file.endswith(f"/{CONFIG_NAME}")]
    more = f" and {len(found) - 20} more" if len(found) > 20 else ""
    return (
        f"; its sub-folders with an adapter, which an ordering can name: {', '.join(found[:20])}{more}" if found else ""
    )
