"""`loramux generate`."""

from __future__ import annotations

import enum
import sys
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from loramux.cli.choices import (
    AdapterOption,
    BaseOption,
    GlobalScalingWeightOption,
    GranularityOption,
    SoftmaxTemperatureOption,
    TopKLoraOption,
    XLoraOption,
    chosen_adapters,
    describe_applied,
    xlora_options,
)
from loramux.cli.heat_map import heat_map
from loramux.cli.json_output import to_json
from loramux.cli.session import AddressOption, JsonOption, Session, open_session
from loramux.client import AnswerStream, GenerateOptions, Generation, Prompt
from loramux.client.prompts import user_message


class Scalings(enum.StrEnum):
    """How much of the X-LoRA scalings to return."""

    MEAN = "mean"
    FULL = "full"


class ScalingsType(enum.StrEnum):
    """How scalings are sent."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


MaxTokensOption = Annotated[int | None, typer.Option(help="Most new tokens.")]
TemperatureOption = Annotated[float | None, typer.Option(help="0 is greedy; default 1.")]
SeedOption = Annotated[int | None, typer.Option(help="Same seed, same answer.")]


def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="The prompt; `-` reads it from standard input.")],
    adapter: AdapterOption = None,
    xlora: XLoraOption = None,
    base: BaseOption = False,
    chat: Annotated[bool, typer.Option("--chat/--raw", help="As a chat message, or as plain text.")] = True,
    max_tokens: MaxTokensOption = None,
    min_tokens: Annotated[int | None, typer.Option(help="Fewest new tokens.")] = None,
    temperature: TemperatureOption = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the likeliest tokens up to this probability.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep this many of the likeliest tokens.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Keep tokens this likely against the likeliest.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: fewer repetitions.")] = None,
    presence_penalty: Annotated[float | None, typer.Option(help="Off the logits of tokens already used.")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="The same, times how often.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; repeatable.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after an end-of-text token.")] = False,
    seed: SeedOption = None,
    logprobs: Annotated[int | None, typer.Option(help="Log probabilities, and this many alternatives.")] = None,
    prompt_logprobs: Annotated[int | None, typer.Option(help="The same for the prompt.")] = None,
    scalings: Annotated[Scalings | None, typer.Option(help="Return X-LoRA scalings.")] = None,
    scalings_out: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Save scalings and tokens; implies --scalings full.")
    ] = None,
    scalings_type: Annotated[ScalingsType, typer.Option(help="float16 halves what is sent.")] = ScalingsType.FLOAT32,
    granularity: GranularityOption = None,
    top_k_lora: TopKLoraOption = None,
    softmax_temperature: SoftmaxTemperatureOption = None,
    global_scaling_weight: GlobalScalingWeightOption = None,
    timeout: Annotated[float | None, typer.Option(help="Give up after this many seconds.")] = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a prompt; the text goes to standard output as it is made."""
    session = open_session(context, as_json, address)
    choice = chosen_adapters(adapter, xlora, base)
    text = sys.stdin.read() if prompt == "-" else prompt
    asked: Prompt = user_message(text) if chat else text
    detail = Scalings.FULL if scalings is None and scalings_out is not None else scalings
    given: dict[str, object] = {
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "stop": stop or None,
        "ignore_eos": ignore_eos or None,
        "seed": seed,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
        "scalings": None if detail is None else detail.value,
        "scalings_type": None if scalings_type is ScalingsType.FLOAT32 else scalings_type.value,
        "xlora": xlora_options(granularity, top_k_lora, softmax_temperature, global_scaling_weight),
        "timeout": timeout,
    }
    options = GenerateOptions(**{name: value for name, value in given.items() if value is not None})  # type: ignore[typeddict-item]
    with session.client() as client:
        generation = show_stream(session, client.stream(asked, adapters=choice, **options), [])
        record = client.record_scalings(asked, generation) if generation.scalings is not None else None
    if record is not None and scalings_out is not None:
        record.save(scalings_out)
        session.say(f"scalings: {scalings_out}")
    if session.json:
        session.write(to_json(generation) + "\n")
        return
    if generation.logprobs is not None:
        session.err.print(Text("logprobs: " + " ".join(f"{value:.3f}" for value in generation.logprobs), style="dim"))
    if record is not None:
        session.err.print(heat_map(record))


def show_stream(session: Session, stream: AnswerStream, shown: list[str]) -> Generation:
    """Shows an answer as it is made, then what it was made with; for programs only waits for its end.

    `shown` collects the texts, so that the caller has them if the user interrupts.
    """
    with stream:
        if session.json:
            return stream.generation()
        with session.err.status("waiting for the first token"):
            started = stream.started()
            first = next(stream, None)
        for piece in () if first is None else chain((first,), stream):
            shown.append(piece.text)
            session.write(piece.text)
        session.write("\n")
        generation = stream.generation()
    usage = generation.usage
    cached = f" ({usage.cached_prompt_tokens} cached)" if usage.cached_prompt_tokens else ""
    session.say(
        f"{describe_applied(started.adapters)} · {usage.prompt_tokens} prompt{cached}"
        f" + {usage.completion_tokens} new tokens · {generation.finish_reason}"
        + (f" · seed {started.seed}" if started.seed is not None else "")
    )
    return generation
