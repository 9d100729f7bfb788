"""Which of the files that lie together are the model: a GGUF file, all parts of one, or a checkpoint in safetensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from inference_svc.weights.errors import FileMissing, UnsupportedFile
from inference_svc.weights.gguf_splits import SplitName
from inference_svc.weights.listing import Listing, size_text
from inference_svc.weights.opening import PICKLE_SUFFIXES
from inference_svc.weights.safetensors_model import CONFIG, INDEX, SINGLE, read_index
from inference_svc.weights.source import SourceFormat

TOKENIZER = "tokenizer.json"
# What is read beside the weights, where there is one.
SIDE_FILES = (
    CONFIG,
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
SUGGESTED = ("Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_0", "Q8_0", "F16")  # the first that there is
MAX_SHOWN = 20

_PROJECTOR = "mmproj"  # the image encoder that llama.cpp keeps beside a model


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model, the small ones first, and what is opened."""

    format: SourceFormat
    files: tuple[str, ...]
    first_part: str | None  # the GGUF file, or the first part of it; None: the folder is opened


@dataclass(frozen=True, slots=True)
class _Gguf:
    """One model in GGUF, of one part or several."""

    parts: tuple[str, ...]  # that are there
    split: SplitName | None

    @property
    def stem(self) -> str:
        return self.split.stem if self.split else PurePosixPath(self.parts[0]).stem

    def is_called(self, tag: str) -> bool:
        """The name ends in a tag like `Q4_K_M`, which is how files of one repository differ."""
        return re.search(rf"(^|[^A-Za-z0-9]){re.escape(tag)}$", self.stem, re.IGNORECASE) is not None


def choose_model(listing: Listing, wanted: str | None) -> ModelFiles:
    """The files of the model that is meant.

    Args:
        listing: what there is.
        wanted: a .gguf file of it, a tag like `Q4_K_M` that the file's name ends in, or None: the model in safetensors,
            or the only one in GGUF.

    Raises:
        FileMissing: there is no such file, no model, or more than one; the message lists them.
        UnsupportedFile: the weights are of a kind that is not read: pickles, legacy GGML files, an adapter.
        MalformedFile: the index of the safetensors files is broken.
    """
    if wanted is not None:
        return _gguf_files(listing, _named(listing, wanted))
    if CONFIG in listing.sizes and (SINGLE in listing.sizes or INDEX in listing.sizes):
        return _safetensors_files(listing)
    models = _gguf_models(listing)
    if not models:
        raise _nothing(listing)
    if len(models) > 1:
        raise FileMissing(
            listing.name, f"{listing.holder} holds {len(models)} models in GGUF, {_advice(listing, models)}"
        )
    return _gguf_files(listing, models[0])


def _named(listing: Listing, wanted: str) -> _Gguf:
    models = _gguf_models(listing)
    if wanted in listing.sizes and wanted.endswith(".gguf"):
        return next((model for model in models if wanted in model.parts), _Gguf((wanted,), None))
    if wanted.endswith(".gguf"):
        raise FileMissing(listing.name, f"{listing.holder} has no file {wanted!r}{_alternatives(listing, models)}")
    tagged = [model for model in models if model.is_called(wanted)]
    if len(tagged) > 1:
        raise FileMissing(
            listing.name, f"{len(tagged)} models of {listing.holder} are called {wanted!r}, {_advice(listing, tagged)}"
        )
    if not tagged:
        what = f"{wanted!r} is not a .gguf file" if wanted in listing.sizes else f"no .gguf file is called {wanted!r}"
        raise FileMissing(listing.name, f"{what}{_alternatives(listing, models)}")
    return tagged[0]


def _gguf_models(listing: Listing) -> list[_Gguf]:
    """One for each model, by name."""
    singles: list[_Gguf] = []
    splits: dict[tuple[str, str, int], list[str]] = {}
    for file in sorted(listing.sizes):
        path = Path(file)
        if path.suffix != ".gguf" or _PROJECTOR in path.name.lower():
            continue
        split = SplitName.of(path)
        if split is None:
            singles.append(_Gguf((file,), None))
        else:
            splits.setdefault((str(path.parent), split.stem, split.count), []).append(file)
    parted = [_Gguf(tuple(parts), SplitName.of(Path(parts[0]))) for parts in splits.values()]
    return sorted(singles + parted, key=lambda model: model.parts[0])


def _gguf_files(listing: Listing, model: _Gguf) -> ModelFiles:
    parts = model.parts
    if model.split is not None:
        folder = PurePosixPath(parts[0]).parent
        parts = tuple(str(folder / model.split.part(number)) for number in range(1, model.split.count + 1))
        missing = [part for part in parts if part not in listing.sizes]
        if missing:
            raise FileMissing(
                listing.name,
                f"{listing.holder} has {len(model.parts)} of {len(parts)} parts, {_some(missing)} is missing",
            )
    return ModelFiles(SourceFormat.GGUF, parts, parts[0])


def _safetensors_files(listing: Listing) -> ModelFiles:
    if TOKENIZER not in listing.sizes:
        raise UnsupportedFile(
            listing.name,
            f"{listing.holder} has no {TOKENIZER}, which is what is read of a tokenizer: "
            "`AutoTokenizer.from_pretrained(...).save_pretrained(...)` of transformers writes one",
        )
    side = [file for file in SIDE_FILES if file in listing.sizes]
    shards = sorted(set(read_index(listing.fetch(INDEX)).values())) if INDEX in listing.sizes else [SINGLE]
    if SINGLE in listing.sizes and SINGLE not in shards:  # what there is without an index comes first
        shards = [SINGLE]
    missing = [shard for shard in shards if shard not in listing.sizes]
    if missing:
        raise FileMissing(
            listing.name, f"{INDEX} names {len(shards)} files, and {listing.holder} has no {_some(missing)}"
        )
    index = [] if shards == [SINGLE] else [INDEX]
    return ModelFiles(SourceFormat.HUGGING_FACE, (*side, *index, *shards), None)


def _nothing(listing: Listing) -> FileMissing | UnsupportedFile:
    """Why there is no model."""
    names = sorted(listing.sizes)
    if CONFIG not in names and any(name in ("adapter_config.json", "xlora_config.json") for name in names):
        return UnsupportedFile(
            listing.name,
            "it is an adapter, not a model: name its base model here, and load it with `loramux adapters load`",
        )
    legacy = [name for name in names if name.endswith(".bin") and "ggml" in name.lower()]
    if legacy:
        return UnsupportedFile(
            listing.name,
            f"its weights are legacy GGML files ({_some(legacy)}): convert them to GGUF with llama.cpp's "
            "convert_llama_ggml_to_gguf.py",
        )
    weights = [name for name in names if name.endswith(".safetensors")]
    if weights and CONFIG not in names:
        return FileMissing(listing.name, f"{listing.holder} has {_some(weights)}, but no {CONFIG} that describes it")
    if weights:
        return FileMissing(
            listing.name, f"{listing.holder} has {_some(weights)}, but neither {SINGLE} nor {INDEX}, which are read"
        )
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        return UnsupportedFile(
            listing.name,
            f"its weights are pickles ({_some(pickles)}), which can run code when they are read: save them as "
            "safetensors, or take a conversion to GGUF",
        )
    return FileMissing(
        listing.name,
        f"{listing.holder} holds no model, neither a .gguf file nor {CONFIG} with {SINGLE}: it has "
        f"{_some(names) or 'nothing'}",
    )


def _advice(listing: Listing, models: Sequence[_Gguf]) -> str:
    """Which model to take, and all that there are, with their sizes."""
    suggested = next((model for tag in SUGGESTED for model in models if model.is_called(tag)), models[0])
    return f"name one, for instance {listing.reference(suggested.parts[0])}{_alternatives(listing, models)}"


def _alternatives(listing: Listing, models: Sequence[_Gguf]) -> str:
    if not models:
        return f"; {listing.holder} has no .gguf file"
    shown = []
    for model in models[:MAX_SHOWN]:
        parts = f"{len(model.parts)} parts, " if len(model.parts) > 1 else ""
        shown.append(f"{model.parts[0]} ({parts}{size_text(sum(listing.sizes[part] for part in model.parts))})")
    more = f" and {len(models) - MAX_SHOWN} more" if len(models) > MAX_SHOWN else ""
    return f"; it has {', '.join(shown)}{more}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
