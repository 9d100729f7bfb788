"""What a request may change of the X-LoRA mixture that it runs with."""

from __future__ import annotations

from dataclasses import dataclass

from loramux.client.errors import invalid_argument
from loramux.inference.v1 import generation_pb2


@dataclass(frozen=True, slots=True)
class EveryToken:
    """Each new token has scalings of its own."""


@dataclass(frozen=True, slots=True)
class FrozenAfter:
    """The first `passes` passes after the prompt have scalings of their own; those of the last hold from then on.

    0: those of the prompt's last token hold for the whole answer. A frozen answer runs about twice as fast.
    """

    passes: int


@dataclass(frozen=True, slots=True)
class RecomputedEvery:
    """New scalings in every `passes`-th pass; those between take the last ones."""

    passes: int


@dataclass(frozen=True, slots=True)
class FrozenWhenSettled:
    """Frozen once no scaling has changed by more than `epsilon` from token to token, `passes` times in a row."""

    epsilon: float
    passes: int


Granularity = EveryToken | FrozenAfter | RecomputedEvery | FrozenWhenSettled


@dataclass(frozen=True, slots=True)
class XLoRAOptions:
    """Changes of a mixture for one request; None leaves what the mixture was trained with.

    Attributes:
        granularity: how often scalings are computed for new tokens; None: the service's default.
        top_k_lora: run only so many adapters at each token and layer.
        softmax_temperature: divides the classifier's output before the softmax; lower is sharper.
        global_scaling_weight: multiplies what all of its adapters add.
    """

    granularity: Granularity | None = None
    top_k_lora: int | None = None
    softmax_temperature: float | None = None
    global_scaling_weight: float | None = None


def parse_granularity(text: str) -> Granularity:
    """`every-token`, `frozen-after:K`, `every:N` or `settled:EPSILON:PASSES`. Raises InvalidArgument."""
    kind, *values = text.split(":")
    try:
        match kind, values:
            case "every-token", []:
                return EveryToken()
            case "frozen-after", [passes]:
                return FrozenAfter(int(passes))
            case "every", [passes]:
                return RecomputedEvery(int(passes))
            case "settled", [epsilon, passes]:
                return FrozenWhenSettled(float(epsilon), int(passes))
    except ValueError:
        pass
    raise invalid_argument(
        "granularity", f"is {text!r}; want every-token, frozen-after:K, every:N or settled:EPSILON:PASSES"
    )


def xlora_options_to_proto(options: XLoRAOptions) -> generation_pb2.XLoraOptions:
    """The message for options. Raises InvalidArgument for what cannot be put into a message."""
    message = generation_pb2.XLoraOptions()
    for name in ("top_k_lora", "softmax_temperature", "global_scaling_weight"):
        value = getattr(options, name)
        if value is not None:
            try:
                setattr(message, name, value)
            except (TypeError, ValueError) as error:
                raise invalid_argument(f"xlora.{name}", f"cannot be {value!r} ({error})") from error
    if options.granularity is not None:
        try:
            message.granularity.CopyFrom(_granularity(options.granularity))
        except (TypeError, ValueError) as error:
            raise invalid_argument("xlora.granularity", f"cannot be {options.granularity!r} ({error})") from error
    return message


def _granularity(granularity: Granularity) -> generation_pb2.ScalingsGranularity:
    match granularity:
        case EveryToken():
            return generation_pb2.ScalingsGranularity(every_token=generation_pb2.EveryToken())
        case FrozenAfter(passes):
            return generation_pb2.ScalingsGranularity(frozen_after=passes)
        case RecomputedEvery(passes):
            return generation_pb2.ScalingsGranularity(recomputed_every=passes)
        case FrozenWhenSettled(epsilon, passes):
            settled = generation_pb2.FrozenWhenSettled(epsilon=epsilon, passes=passes)
            return generation_pb2.ScalingsGranularity(settled=settled)
        case _:
            raise TypeError("no granularity")
