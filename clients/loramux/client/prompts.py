"""The three forms of a prompt: text as it is, chat messages, token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, cast

from loramux.client.errors import invalid_argument
from loramux.inference.v1 import generation_pb2


class Message(TypedDict):
    """One turn of a conversation, for instance `{"role": "user", "content": "hi"}`."""

    role: str
    content: str


# Plain dictionaries are named too: type checkers do not see a Message in a literal inside this union.
Prompt = str | Sequence[Message] | Sequence[Mapping[str, str]] | Sequence[int]
"""`str`: text, tokenized as it is; messages: rendered with the model's chat template; ints: token ids, as they are."""


def user_message(text: str) -> tuple[Message, ...]:
    """A conversation of one message."""
    return (Message(role="user", content=text),)


def prompt_to_proto(prompt: Prompt) -> generation_pb2.Prompt:
    """The message for a prompt. Raises InvalidArgument if it is empty or mixes forms."""
    if isinstance(prompt, str):
        return generation_pb2.Prompt(text=prompt)
    if not prompt:
        raise invalid_argument("prompt", "is an empty list; give text, messages or token ids")
    if all(isinstance(part, int) and not isinstance(part, bool) for part in prompt):
        return _token_ids(cast("Sequence[int]", prompt))
    if all(isinstance(part, Mapping) for part in prompt):
        return _chat(cast("Sequence[Mapping[str, str]]", prompt))
    raise invalid_argument("prompt", "mixes messages and token ids, or holds something else; give one form")


def _token_ids(ids: Sequence[int]) -> generation_pb2.Prompt:
    wrong = next((token for token in ids if not 0 <= token < 2**32), None)
    if wrong is not None:
        raise invalid_argument("prompt", f"holds the token id {wrong}, which is outside 0..4294967295")
    return generation_pb2.Prompt(token_ids=generation_pb2.TokenIds(ids=ids))


def _chat(messages: Sequence[Mapping[str, str]]) -> generation_pb2.Prompt:
    turns = []
    for index, message in enumerate(messages):
        if set(message) != {"role", "content"} or not all(isinstance(text, str) for text in message.values()):
            raise invalid_argument(f"prompt[{index}]", f'is {dict(message)!r}; want {{"role": ..., "content": ...}}')
        turns.append(generation_pb2.ChatMessage(role=message["role"], content=message["content"]))
    return generation_pb2.Prompt(chat=generation_pb2.ChatMessages(messages=turns))
