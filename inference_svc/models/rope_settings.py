"""How config.json and GGUF metadata say what a model's rotary positions are."""

from __future__ import annotations

import math

from gguf import GGMLQuantizationType

from inference_svc.layers.rotary import (
    FrequencyDivisors,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)
from inference_svc.models.settings import MAX_CONTEXT, MAX_WIDTH, Settings
from inference_svc.weights.errors import MalformedFile
from inference_svc.weights.source import TensorSource


def rope_of_config(
    settings: Settings, head_dim: int, context_length: int, *, theta: float, rotary_part: float | None
) -> RopeConfig:
    """From config.json, in the form of transformers 5 (`rope_parameters`) or before (`rope_theta`, `rope_scaling`).

    Args:
        settings: the whole file.
        head_dim: of the model.
        context_length: of the model.
        theta: where the file does not say.
        rotary_part: of a head's dimensions, where the file does not say; None: the architecture always rotates all.

    Raises:
        MalformedFile: a value is missing or nonsensical.
        UnsupportedFile: a kind of scaling that is not supported.
    """
    theta = settings.number("rope_theta", theta)
    part = settings.number("partial_rotary_factor", rotary_part or 1.0)
    new, old = settings.section("rope_parameters"), settings.section("rope_scaling")
    stated = old if old is not None and old.values else new
    scaling: RopeScaling | None = None
    if stated is not None and stated.values:
        theta = stated.number("rope_theta", theta)
        part = stated.number("partial_rotary_factor", part)
    if rotary_part is None and part != 1.0:
        raise settings.unsupported("partial_rotary_factor", f"it is {part}, and the architecture rotates whole heads")
    dim = int(head_dim * part)
    if dim % 2 or not 0 < dim <= head_dim:
        raise MalformedFile(
            settings.path, f"the rotary part {part} of {head_dim} dimensions is not a whole even number"
        )
    if stated is not None and stated.values:
        scaling = _scaling(settings, stated, dim, context_length)
    return RopeConfig(dim, theta, scaling)


def _scaling(settings: Settings, stated: Settings, dim: int, context_length: int) -> RopeScaling | None:
    kind = stated.get("rope_type") or stated.get("type") or "default"
    is_phi3 = settings.get("model_type") == "phi3"
    if is_phi3 and kind in ("su", "yarn"):  # what its first files call LongRoPE; transformers reads them so
        kind = "longrope"
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(stated.number("factor"))
        case "llama3":
            return Llama3Scaling(
                stated.number("factor"),
                stated.number("low_freq_factor"),
                stated.number("high_freq_factor"),
                _original_length(settings, stated, context_length),
            )
        case "yarn":
            return _yarn(stated, _original_length(settings, stated, context_length))
        case "longrope":
            original = _original_length(settings, stated, 4096 if is_phi3 else context_length)
            factor = stated.number("factor", context_length / original)
            return LongRope(
                stated.numbers("short_factor", dim // 2),
                stated.numbers("long_factor", dim // 2),
                original,
                stated.number("attention_factor", long_rope_attention_factor(factor, original)),
            )
    key = "rope_type" if stated.get("rope_type") else "type"
    raise stated.unsupported(key, "of the kinds of scaling, linear, llama3, yarn and longrope are")


def _original_length(settings: Settings, stated: Settings, default: int) -> int:
    key = "original_max_position_embeddings"
    return settings.count(key, MAX_CONTEXT, stated.count(key, MAX_CONTEXT, default))


def _yarn(stated: Settings, original: int) -> YarnScaling:
    factor = stated.number("factor")
    default = yarn_attention_factor(factor)
    mscale, all_dim = stated.get("mscale"), stated.get("mscale_all_dim")
    if mscale and all_dim:
        default = yarn_attention_factor(factor, stated.number("mscale")) / yarn_attention_factor(
            factor, stated.number("mscale_all_dim")
        )
    return YarnScaling(
        factor,
        original,
        stated.number("attention_factor", default),
        stated.number("beta_fast", 32.0),
        stated.number("beta_slow", 1.0),
        stated.flag("truncate", True),
    )


def yarn_attention_factor(factor: float, scale: float = 1.0) -> float:
    """What YaRN multiplies cos and sin by, unless a file says it."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def long_rope_attention_factor(factor: float, original_length: int) -> float:
    """The same for LongRoPE."""
    return math.sqrt(1 + math.log(factor) / math.log(original_length)) if factor > 1.0 else 1.0


SHORT_FACTORS, LONG_FACTORS, DIVISORS = "rope_factors_short.weight", "rope_factors_long.weight", "rope_freqs.weight"


def rope_of_gguf(
    settings: Settings, source: TensorSource, head_dim: int, context_length: int, *, may_be_partial: bool
) -> RopeConfig:
    """From GGUF metadata, and from the small tensors beside it.

    Raises:
        MalformedFile: a value is nonsensical.
        UnsupportedFile: a kind of scaling that is not supported.
    """
    theta = settings.number("rope.freq_base", 10000.0)
    dim = settings.count("rope.dimension_count", head_dim, head_dim)
    if dim % 2:
        raise settings.malformed("rope.dimension_count", "an even number", dim)
    if dim != head_dim and not may_be_partial:
        raise settings.unsupported("rope.dimension_count", f"the architecture rotates all {head_dim} of a head")
    factor_key = "rope.scaling.factor" if settings.has("rope.scaling.factor") else "rope.scale_linear"
    # 0 and 1 mean none, whatever the type.
    factor = 1.0 if settings.get(factor_key) in (None, 0) else settings.number(factor_key)
    kind = settings.get("rope.scaling.type")
    if SHORT_FACTORS in source.entries or LONG_FACTORS in source.entries or kind == "longrope":
        return RopeConfig(dim, theta, _gguf_long_rope(settings, source, dim, context_length))
    if DIVISORS in source.entries:
        if factor != 1.0 or kind not in (None, "none"):
            raise settings.unsupported(factor_key, f"beside the tensor {DIVISORS!r}")
        return RopeConfig(dim, theta, FrequencyDivisors(_vector(source, DIVISORS, dim // 2)))
    match kind:
        case "none":
            return RopeConfig(dim, theta)
        case None | "linear":  # as llama.cpp takes a factor without a type
            return RopeConfig(dim, theta, LinearScaling(factor) if factor != 1.0 else None)
        case "yarn":
            return RopeConfig(dim, theta, _gguf_yarn(settings, factor, context_length))
    raise settings.unsupported("rope.scaling.type", "of the kinds of scaling, linear, yarn and longrope are")


def _gguf_yarn(settings: Settings, factor: float, context_length: int) -> YarnScaling:
    # Versions of llama.cpp differ in what these mean.
    for key in ("yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier", "attn_factor"):
        if settings.get(f"rope.scaling.{key}") not in (None, 1.0):
            raise settings.unsupported(f"rope.scaling.{key}", "YaRN with its usual attention factor is")
    return YarnScaling(
        factor,
        settings.count("rope.scaling.original_context_length", MAX_CONTEXT, context_length),
        yarn_attention_factor(factor),
        settings.number("rope.scaling.yarn_beta_fast", 32.0),
        settings.number("rope.scaling.yarn_beta_slow", 1.0),
    )


def _gguf_long_rope(settings: Settings, source: TensorSource, dim: int, context_length: int) -> LongRope:
    for name in (SHORT_FACTORS, LONG_FACTORS):
        if name not in source.entries:
            raise MalformedFile(str(source.path), f"tensor {name!r} is missing, LongRoPE needs it")
    original = settings.count("rope.scaling.original_context_length", MAX_CONTEXT)
    return LongRope(
        _vector(source, SHORT_FACTORS, dim // 2),
        _vector(source, LONG_FACTORS, dim // 2),
        original,
        settings.number("rope.scaling.attn_factor", long_rope_attention_factor(context_length / original, original)),
    )


def _vector(source: TensorSource, name: str, length: int) -> tuple[float, ...]:
    """A small vector of positive numbers. Raises MalformedFile."""
    shape, quantization = source.entries[name].shape, source.entries[name].quantization
    if quantization not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16):
        raise MalformedFile(str(source.path), f"tensor {name!r} is of type {quantization.name}, expected F32")
    if shape != (length,) or length > MAX_WIDTH:
        raise MalformedFile(str(source.path), f"tensor {name!r} has the shape {shape}, the config asks for {(length,)}")
    values = source.tensor(name).dequantize()[0]
    if not bool(((values > 0) & values.isfinite()).all()):
        raise MalformedFile(str(source.path), f"tensor {name!r} has numbers that are not positive")
    return tuple(values.tolist())
