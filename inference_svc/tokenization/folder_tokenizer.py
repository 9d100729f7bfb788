"""The tokenizer of a Hugging Face folder: `tokenizer.json`, and what the files beside it add."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from inference_svc.tokenization.chat_template import ChatTemplate, NoChatTemplate
from inference_svc.tokenization.decoders import text_of_decoder
from inference_svc.tokenization.folder_files import CONFIG_FILE, TOKENIZER_FILE, TokenizerFiles, read_tokenizer_files
from inference_svc.tokenization.tokenizer import END_TEXTS, ModelTokenizer, SpecialTokens, check_vocab_size


def tokenizer_from_folder(folder: Path, vocab_size: int | None = None) -> ModelTokenizer:
    """Build the tokenizer.

    Args:
        folder: has tokenizer.json; tokenizer_config.json, special_tokens_map.json, added_tokens.json,
            generation_config.json, config.json and chat_template.jinja are read where they are there.
        vocab_size: number of ids that the model knows; None: as many as there are tokens.

    Raises:
        FileMissing: there is no tokenizer.json, or a file cannot be read.
        MalformedFile: a file is not what its name says, or contradicts another.
        UnsupportedTokenizer: the tokenizer is in another form, or its decoder is of a kind that is not supported.
        WrongVocabularySize: the model knows fewer ids, or many more.
    """
    files = read_tokenizer_files(folder)
    backend = _backend(files)
    text = text_of_decoder(str(folder / TOKENIZER_FILE), _decoder(backend))
    _add_tokens(files, backend, vocab_size)
    num_tokens = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    check_vocab_size(str(folder), num_tokens, vocab_size)
    special = _special_tokens(files, backend, vocab_size or num_tokens)
    return ModelTokenizer(backend, text, special, _chat_template(files), vocab_size or num_tokens)


def _backend(files: TokenizerFiles) -> Tokenizer:
    try:
        backend = Tokenizer.from_str(files.tokenizer)
        backend.encode("a")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise files.malformed(TOKENIZER_FILE, f"the tokenizers library cannot read it: {error!s:.300}") from error
    # For training; every request is measured against the context anyway.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _decoder(backend: Tokenizer) -> object:
    # The library's own state is the JSON of tokenizer.json, older spellings brought up to date.
    return None if backend.decoder is None else json.loads(backend.decoder.__getstate__())


def _add_tokens(files: TokenizerFiles, backend: Tokenizer, vocab_size: int | None) -> None:
    for token_id, token in sorted(files.added_tokens.items()):
        if vocab_size is not None and token_id >= vocab_size:
            raise files.malformed(
                CONFIG_FILE, f"the added token {token.content!r:.80} has the id {token_id}: the model's {vocab_size} "
                "ids end before it"
            )  # fmt: skip
        backend.add_tokens([token])
        found = backend.token_to_id(token.content)
        if found != token_id:
            raise files.malformed(
                CONFIG_FILE, f"the added token {token.content!r:.80} has the id {token_id}, in tokenizer.json {found}"
            )
    added = backend.get_added_tokens_decoder()
    for text in files.special_tokens().values():
        known_id = backend.token_to_id(text)
        # One that the model does not have stays text: its id would be beyond the embedding.
        if known_id is not None:
            known = added.get(known_id, AddedToken(text, normalized=False))
            known.special = True
            backend.add_special_tokens([known])


def _special_tokens(files: TokenizerFiles, backend: Tokenizer, vocab_size: int) -> SpecialTokens:
    named = {key: backend.token_to_id(text) for key, text in files.special_tokens().items()}
    ends = files.generation_ids("eos_token_id")
    for token_id in ends:
        if token_id >= vocab_size:
            raise files.malformed(
                "generation_config.json", f"'eos_token_id' has {token_id}, not one of the ids 0 to {vocab_size - 1}"
            )
    added = backend.get_added_tokens_decoder()
    if not files.states_ends:
        ends += tuple(token_id for token_id, token in added.items() if token.content in END_TEXTS)
    before, after = _around(files, backend, named)
    eos = named.get("eos_token")
    return SpecialTokens(
        bos_token_id=named.get("bos_token"),
        eos_token_ids=frozenset(ends if eos is None else (*ends, eos)),
        control_token_ids=frozenset(token_id for token_id, token in added.items() if token.special),
        before=before,
        after=after,
    )


def _around(
    files: TokenizerFiles, backend: Tokenizer, named: dict[str, int | None]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What goes before and after a text: by the post-processor, or else by `add_bos_token` and `add_eos_token`."""
    encoding = backend.encode("a", add_special_tokens=True)
    is_added = encoding.special_tokens_mask
    first = next((index for index, added in enumerate(is_added) if not added), len(is_added))
    last = next((index for index in range(len(is_added), 0, -1) if not is_added[index - 1]), 0)
    before, after = tuple(encoding.ids[:first]), tuple(encoding.ids[max(first, last) :])
    if before or after:
        return before, after

    def wanted(name: str) -> tuple[int, ...]:
        token_id = named.get(f"{name}_token")
        return (token_id,) if token_id is not None and files.config.get(f"add_{name}_token") is True else ()

    return wanted("bos"), wanted("eos")


def _chat_template(files: TokenizerFiles) -> ChatTemplate | NoChatTemplate:
    templates = files.chat_templates
    if "default" in templates:
        return ChatTemplate(templates["default"], files.special_tokens())
    if templates:
        return NoChatTemplate(f"The model has the chat templates {', '.join(sorted(templates))}, and none by default.")
    return NoChatTemplate()
