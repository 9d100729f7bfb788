"""The tokenizer of a model, whatever its files."""

from __future__ import annotations

from inference_svc.tokenization.folder_tokenizer import tokenizer_from_folder
from inference_svc.tokenization.gguf_tokenizer import tokenizer_from_gguf
from inference_svc.tokenization.tokenizer import ModelTokenizer
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.opening import ModelSource


def tokenizer_of(source: ModelSource, vocab_size: int) -> ModelTokenizer:
    """Build the tokenizer of a GGUF file or of a Hugging Face folder.

    Args:
        source: the opened files.
        vocab_size: number of ids that the model knows: rows of its embedding.

    Raises:
        FileMissing: the folder has no tokenizer.json.
        MalformedFile: a file is not what it says it is, or contradicts another.
        UnsupportedTokenizer: the tokenizer is of a kind that is not supported.
        WrongVocabularySize: the model knows fewer ids than there are tokens, or many more.
    """
    if isinstance(source, GgufFile):
        return tokenizer_from_gguf(source, vocab_size)
    return tokenizer_from_folder(source.path, vocab_size)
