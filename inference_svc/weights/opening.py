"""Opens the files of a model, whatever their format, or says what to do with those that cannot be used."""

from __future__ import annotations

from pathlib import Path

from inference_svc.weights.errors import FileMissing, UnsupportedFile
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.pinned_file import PinnedFile
from inference_svc.weights.safetensors_model import INDEX, SINGLE, SafetensorsModel

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# A zip archive, which torch.save writes since 1.6, and a pickle of protocol 2 to 5.
PICKLE_MAGICS = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in (2, 3, 4, 5)))
_ADVICE = (
    "a pickle, which can run code of its own when it is read: save the model as safetensors "
    "(transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)), or take it as GGUF"
)

ModelSource = GgufFile | SafetensorsModel


def open_model(path: Path) -> ModelSource:
    """Open a GGUF file, any part of a split one, a folder with safetensors, or a safetensors file in one.

    Nothing but headers is read.

    Raises:
        FileMissing: it is not there, or the folder holds no model.
        MalformedFile: a file is truncated, or breaks its format.
        UnsupportedFile: a legacy GGML file, a pickle, or tensors of a type that is not supported.
    """
    if path.is_dir():
        _refuse_folder_without_safetensors(path)
        return SafetensorsModel.open(path)
    if path.suffix == ".safetensors":
        return SafetensorsModel.open(path.parent, path.name)
    file = PinnedFile(path)
    with file.stream() as stream:
        start = stream.read(4)
    if start.startswith(PICKLE_MAGICS):
        raise UnsupportedFile(str(path), _ADVICE)
    return GgufFile.open(path)


def _refuse_folder_without_safetensors(folder: Path) -> None:
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
        return
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise FileMissing(str(folder), f"cannot be read: {error.strerror}") from error
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise UnsupportedFile(str(folder / pickles[0]), _ADVICE)
    holds = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    raise FileMissing(str(folder), f"it has neither {SINGLE} nor {INDEX}; it holds {holds or 'nothing'}")
