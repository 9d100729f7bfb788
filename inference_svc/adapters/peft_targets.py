"""Which modules a PEFT adapter was trained on, as its configuration says: to find tensors that are missing or stray."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from inference_svc.adapters.expert_tensors import parameter_of
from inference_svc.adapters.peft_patterns import check_patterns

ALL_LINEAR = "all-linear"
_FIRST_INDEX = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")


@dataclass(frozen=True, slots=True)
class PeftTargets:
    """The keys of `adapter_config.json` that choose modules; a string is a regular expression."""

    modules: str | frozenset[str] = frozenset()
    exclude: str | frozenset[str] = frozenset()
    layers: int | frozenset[int] = frozenset()
    layers_pattern: tuple[str, ...] = ()
    parameters: frozenset[str] = frozenset()  # adapted beside modules: experts that are fused

    def __post_init__(self) -> None:
        """Raises PatternError for an expression that is broken or that could take very long."""
        whole = [value for value in (self.modules, self.exclude) if isinstance(value, str)]
        check_patterns((*whole, *self.layers_pattern))

    def contain(self, path: str) -> bool:
        """The adapter changes this module. Source: `check_target_module_exists` of PEFT."""
        if self.name_of(path) != path:
            return True
        if self.exclude and _matches(self.exclude, path):
            return False
        if isinstance(self.modules, str):
            if self.modules.lower() == ALL_LINEAR:
                return path.rpartition(".")[2] != "lm_head"
            return _matches(self.modules, path)
        if path in self.modules:  # a whole path is taken whatever the layers are
            return True
        return _matches(self.modules, path) and self._has_layer(path)

    def name_of(self, path: str) -> str:
        """What patterns of ranks and scales call a module: itself, or the parameter that is adapted in its place."""
        parameter = parameter_of(path) if self.parameters else None
        return path if parameter is None or self.parameters.isdisjoint(_endings(parameter)) else parameter

    def _has_layer(self, path: str) -> bool:
        if self.layers == frozenset():
            return True
        found = _FIRST_INDEX.match(path) if not self.layers_pattern else self._index_after_a_pattern(path)
        if found is None:
            return False
        index = int(found["index"])
        return index == self.layers if isinstance(self.layers, int) else index in self.layers

    def _index_after_a_pattern(self, path: str) -> re.Match[str] | None:
        matches = (re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", path) for pattern in self.layers_pattern)
        return next((match for match in matches if match is not None), None)


def _matches(wanted: str | frozenset[str], path: str) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, path) is not None
    return not wanted.isdisjoint(_endings(path))


def _endings(path: str) -> Iterator[str]:
    """The path, and what follows each of its dots."""
    while path:
        yield path
        path = path.partition(".")[2]
