"""Reads prompts from a file: paragraphs of a text, or the lines of a JSONL file."""

from __future__ import annotations

import json
import reprlib
from dataclasses import dataclass
from pathlib import Path

from inference_svc.distortion.built_in_prompts import BUILT_IN_PROMPTS
from inference_svc.distortion.errors import DistortionError
from inference_svc.tokenization.tokenizer import ChatMessage, ModelTokenizer

MAX_FILE_BYTES = 64 << 20

_FORMS = '"text", {"text": "..."}, {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, or a conversation that the model's chat template makes one."""

    text: str = ""
    messages: tuple[ChatMessage, ...] = ()

    def encode(self, tokenizer: ModelTokenizer) -> list[int]:
        """Token ids, as the service makes them.

        Raises:
            TokenizationError: the text is not valid Unicode, or there is no template that takes the conversation.
        """
        return tokenizer.encode_chat(self.messages) if self.messages else tokenizer.encode(self.text)


def built_in_prompts() -> tuple[Prompt, ...]:
    """Those that come along."""
    return tuple(map(Prompt, BUILT_IN_PROMPTS))


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a file.

    Args:
        path: `*.jsonl` holds one on each line: a string, or an object with `text`, `prompt` or `messages`. Any other
            file is text, and its paragraphs, which empty lines part, are the prompts.

    Raises:
        DistortionError: it cannot be read, is too large, holds no prompt, or a line of it is none.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DistortionError(f"--prompts {path}: it has more than the {MAX_FILE_BYTES} bytes allowed")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DistortionError(f"--prompts {path}: it cannot be read: {error}") from error
    if path.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        prompts = tuple(_from_line(f"--prompts {path}: line {number}", line) for number, line in lines)
    else:
        paragraphs = "\n".join(line.rstrip() for line in text.splitlines()).split("\n\n")
        prompts = tuple(Prompt(paragraph.strip("\n")) for paragraph in paragraphs if paragraph.strip())
    if not prompts:
        raise DistortionError(f"--prompts {path}: it holds no prompt")
    return prompts


def _from_line(place: str, line: str) -> Prompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DistortionError(f"{place} is not JSON: {error}") from error
    if isinstance(value, str):
        return Prompt(value)
    if isinstance(value, dict):
        for key in ("text", "prompt"):
            if isinstance(text := value.get(key), str):
                return Prompt(text)
        messages = value.get("messages")
        if isinstance(messages, list) and messages and all(map(_is_message, messages)):
            return Prompt(messages=tuple(ChatMessage(each["role"], each["content"]) for each in messages))
    raise DistortionError(f"{place} is {reprlib.repr(value)}, expected {_FORMS}")


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))
