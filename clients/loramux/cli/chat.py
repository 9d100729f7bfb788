"""`loramux chat`."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Annotated

import typer

from loramux.cli.choices import AdapterOption, BaseOption, XLoraOption, chosen_adapters, weighted_adapter
from loramux.cli.generate import MaxTokensOption, SeedOption, TemperatureOption, show_stream
from loramux.cli.json_output import to_json
from loramux.cli.problems import report_service_error
from loramux.cli.session import AddressOption, JsonOption, Session, open_session
from loramux.client import BASE, AdapterChoice, Client, GenerateOptions, LoramuxError, Message, XLoRA

HELP = (
    "/adapter NAME[=WEIGHT]... chooses LoRAs, /adapter xlora NAME a mixture, /adapter base none;\n"
    "/adapter alone the active default; /reset forgets the conversation; /quit leaves; Ctrl-C stops an answer."
)


@dataclass(slots=True)
class Conversation:
    """What was said, and what the next answer is made with."""

    adapters: AdapterChoice
    system: str | None
    options: GenerateOptions
    messages: list[Message] = field(default_factory=list)

    def reset(self) -> None:
        """Forgets all but the system message."""
        self.messages = [] if self.system is None else [Message(role="system", content=self.system)]


def chat(
    context: typer.Context,
    adapter: AdapterOption = None,
    xlora: XLoraOption = None,
    base: BaseOption = False,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Talk with the model; /help lists the commands. With --json: a message a line in, an answer a line out."""
    session = open_session(context, as_json, address)
    options = GenerateOptions()
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if temperature is not None:
        options["temperature"] = temperature
    if seed is not None:
        options["seed"] = seed
    conversation = Conversation(chosen_adapters(adapter, xlora, base), system, options)
    conversation.reset()
    session.say("/help lists the commands")
    if sys.stdin.isatty():
        with suppress(ImportError):
            import_module("readline")  # gives input() a history
    with session.client() as client:
        while (line := _next_line(session)) is not None:
            if line.startswith("/"):
                if not _obey(session, conversation, line):
                    return
            elif line:
                _answer(session, client, conversation, line)


def _next_line(session: Session) -> str | None:
    """What the user typed; None at the end of the input, or where no answer is left to interrupt."""
    try:
        if sys.stdin.isatty() and not session.json:
            return session.out.input("[bold cyan]> [/]").strip()
        line = sys.stdin.readline()
        return line.strip() if line else None
    except KeyboardInterrupt:
        session.say("\n/quit leaves")
        return ""
    except EOFError:
        return None


def _obey(session: Session, conversation: Conversation, line: str) -> bool:
    """Runs a /command; False if it ends the conversation."""
    command, *words = line.split()
    if command == "/quit":
        return False
    if command == "/reset":
        conversation.reset()
        session.say("forgotten")
    elif command == "/adapter":
        try:
            conversation.adapters = _choice(words)
        except typer.BadParameter as error:
            session.say(error.message)
        else:
            session.say(f"adapters: {' '.join(words) or 'the active default'}")
    else:
        session.say(HELP if command == "/help" else f"no command {command}\n{HELP}")
    return True


def _choice(words: list[str]) -> AdapterChoice:
    match words:
        case []:
            return None
        case ["base"]:
            return BASE
        case ["xlora", name]:
            return XLoRA(name)
        case _:
            return tuple(map(weighted_adapter, words))


def _answer(session: Session, client: Client, conversation: Conversation, text: str) -> None:
    conversation.messages.append(Message(role="user", content=text))
    said: list[str] = []
    try:
        stream = client.stream(conversation.messages, adapters=conversation.adapters, **conversation.options)
        generation = show_stream(session, stream, said)
    except KeyboardInterrupt:
        session.say("\nstopped")
    except LoramuxError as error:
        # The conversation goes on, without the message that could not be answered.
        conversation.messages.pop()
        report_service_error(session, error)
        return
    else:
        if session.json:
            said = [generation.text]
            session.write(to_json(generation) + "\n")
    if said:
        conversation.messages.append(Message(role="assistant", content="".join(said)))
    else:
        conversation.messages.pop()
