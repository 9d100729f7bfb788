"""What the decoder of a tokenizer.json says of its tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping

from inference_svc.tokenization.errors import UnsupportedTokenizer
from inference_svc.tokenization.token_text import SPACE_MARK, ByteLevelText, SentencePieceText, TokenText

_MARK_TO_SPACE = {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}
_BYTES = {"type": "ByteFallback"}
_FUSE = {"type": "Fuse"}
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def text_of_decoder(source: str, decoder: object) -> TokenText:
    """How a vocabulary spells bytes, by the JSON of its decoder.

    The kinds are those of the models that write text from left to right: ByteLevel; Llama's steps (U+2581 is a space,
    byte fallback, one space less in front) or some of them; Metaspace. Of the U+2581 that a first token begins with,
    Metaspace drops all and this only the one that the tokenizer put there.

    Raises:
        UnsupportedTokenizer: it is of another kind.
    """
    steps = decoder.get("decoders") if isinstance(decoder, Mapping) and decoder.get("type") == "Sequence" else [decoder]
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
        raise _unsupported(source, decoder)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevelText()
    if kinds == ["Metaspace"]:
        scheme = steps[0].get("prepend_scheme") or ("always" if steps[0].get("add_prefix_space", True) else "never")
        if steps[0].get("replacement") == SPACE_MARK:
            return SentencePieceText(strips_leading_space=scheme != "never", falls_back_to_bytes=False)
    if (
        steps
        and steps[0] == _MARK_TO_SPACE
        and steps[1:]
        in (
            [],
            [_FUSE],
            [_BYTES, _FUSE],
            [_FUSE, _STRIP],
            [_BYTES, _FUSE, _STRIP],
        )
    ):
        return SentencePieceText(strips_leading_space=_STRIP in steps, falls_back_to_bytes=_BYTES in steps)
    raise _unsupported(source, decoder)


def _unsupported(source: str, decoder: object) -> UnsupportedTokenizer:
    return UnsupportedTokenizer(
        f"The tokenizer of {source} has the decoder {json.dumps(decoder, ensure_ascii=False):.200}; supported are "
        "ByteLevel, Metaspace, and Llama's Replace, ByteFallback, Fuse, Strip."
    )
