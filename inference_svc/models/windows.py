"""Which layers see only a window of the past, by the rules of architectures for config.json and for GGUF."""

from __future__ import annotations

from collections.abc import Callable

from inference_svc.models.settings import MAX_CONTEXT, Settings

Windows = tuple[int | None, ...]  # [num_layers], positions that a row sees, its own too; None: all
WindowRule = Callable[[Settings, int], Windows]  # what the file says, number of layers

FULL, SLIDING = "full_attention", "sliding_attention"


def no_windows(_: Settings, num_layers: int) -> Windows:
    """Every layer sees everything."""
    return (None,) * num_layers


def in_every_layer(default: int | None = None) -> WindowRule:
    """config.json: `sliding_window` in all layers alike."""

    def rule(settings: Settings, num_layers: int) -> Windows:
        return (_window(settings, default),) * num_layers

    return rule


def alternating(default: int) -> WindowRule:
    """config.json: `sliding_window` as `layer_types` says, else in the first layer and every second one after it."""

    def rule(settings: Settings, num_layers: int) -> Windows:
        window = _window(settings, default)
        types = _layer_types(settings, num_layers) or (SLIDING, FULL) * num_layers
        return tuple(window if kind == SLIDING else None for kind in types[:num_layers])

    return rule


def from_a_layer_on(settings: Settings, num_layers: int) -> Windows:
    """config.json: as `layer_types` says, else from `max_window_layers` on; nowhere without `use_sliding_window`."""
    types, window = _layer_types(settings, num_layers), _window(settings, 4096)
    first = settings.get("max_window_layers")
    if not settings.flag("use_sliding_window", False):
        return (None,) * num_layers
    if types is None:
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise settings.malformed("max_window_layers", "the number of layers that see everything", first)
        types = (FULL,) * min(first, num_layers) + (SLIDING,) * (num_layers - first)
    return tuple(window if kind == SLIDING else None for kind in types)


def gguf_in_every_layer(settings: Settings, num_layers: int) -> Windows:
    """GGUF: in all layers alike."""
    return (gguf_window(settings, None),) * num_layers


def gguf_window(settings: Settings, default: int | None) -> int | None:
    """The window that a GGUF file states; 0 is none. Raises MalformedFile."""
    key = "attention.sliding_window"
    value = settings.get(key)
    if value is None:
        return default
    return None if value == 0 and not isinstance(value, bool) else settings.count(key, MAX_CONTEXT)


def _window(settings: Settings, default: int | None) -> int | None:
    """Null is none; a missing key is the default of transformers' class."""
    if not settings.has("sliding_window"):
        return default
    return None if settings.get("sliding_window") is None else settings.count("sliding_window", MAX_CONTEXT)


def _layer_types(settings: Settings, num_layers: int) -> tuple[str, ...] | None:
    value = settings.get("layer_types")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != num_layers or any(kind not in (FULL, SLIDING) for kind in value):
        raise settings.malformed("layer_types", f"a list of {num_layers} times {FULL!r} or {SLIDING!r}", value)
    return tuple(value)
