"""Which modules of a model carry adapters, by the rules of PEFT's LoraConfig (0.21.2, `check_target_module_exists`).

A list names modules by their whole path or by what follows a dot at its end. A string is a regular expression that has
to match the whole path; `all-linear` stands for every linear layer but the output head. What `exclude_modules` matches,
by the same two rules, is left out. `layers_to_transform` keeps the layers with these indices, for a list only.
Stricter than PEFT: a name of the list that selects nothing, and a layer that the model does not have, are errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ordering_svc.domain.architectures import EMBEDDINGS, OUTPUT_HEAD, ModelStructure
from ordering_svc.domain.path_patterns import MAX_PATTERN_LENGTH, MatchesPaths, PathPattern
from ordering_svc.domain.problems import shown
from ordering_svc.errors import InvalidValue, NoModuleSelected, TargetModulesUnmatched, TargetModuleUnsupported

ALL_LINEAR = "all-linear"

_FIRST_INDEX = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")  # the layer of a path where no layers_pattern says which

Names = tuple[str, ...]
Keeps = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class TargetSelection:
    """Fields as in PEFT's LoraConfig: names are a list, a string is a regular expression or `all-linear`."""

    target_modules: Names | str
    exclude_modules: Names | str = ()
    layers_to_transform: tuple[int, ...] = ()  # empty: all layers
    layers_pattern: Names = ()  # names of the list of layers, as regular expressions; empty: whatever it is called

    @property
    def is_all_linear(self) -> bool:
        """Every linear layer but the output head."""
        return isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR

    def patterns(self) -> Iterator[PathPattern]:
        """The regular expressions in it."""
        if isinstance(self.target_modules, str) and not self.is_all_linear:
            yield PathPattern("target_modules", self.target_modules)
        if isinstance(self.exclude_modules, str):
            yield PathPattern("exclude_modules", self.exclude_modules)
        for index, text in enumerate(self.layers_pattern):
            yield PathPattern(f"layers_pattern[{index}]", text, r"(?:^|.*?\.)", r"\.(?P<idx>\d+)\.", is_whole=False)


def select_modules(structure: ModelStructure, selection: TargetSelection, match: MatchesPaths) -> tuple[str, ...]:
    """The paths of the modules that carry adapters, in PEFT's order.

    Raises:
        InvalidValue: fields contradict each other, a pattern is too long, or the model has no such layer.
        PatternInvalid, PatternTooCostly: a regular expression cannot be compiled, or takes too long.
        TargetModulesUnmatched: a name of the list selects nothing.
        TargetModuleUnsupported: a module is selected that no adapter can sit on.
        NoModuleSelected: nothing is selected, or everything is excluded.
    """
    patterns = tuple(selection.patterns())
    _check(selection, patterns, structure.num_layers)
    adaptable = tuple(structure.module_paths())
    paths = (*adaptable, *structure.other_paths())
    answers = dict(zip((pattern.field for pattern in patterns), match(patterns, paths), strict=True))

    targeted = list(filter(_target_rule(selection, structure, paths, answers), paths))
    excluded = _rule(selection.exclude_modules, answers.get("exclude_modules", {}))
    selected = [path for path in targeted if not excluded(path)]
    can_carry = frozenset(adaptable)
    unsupported = [path for path in selected if path not in can_carry]
    if unsupported:
        raise TargetModuleUnsupported(unsupported, structure.architecture, available_targets(structure))
    if not selected:
        raise NoModuleSelected(_why_nothing(selection, structure, targeted))
    return tuple(selected)


def available_targets(structure: ModelStructure) -> tuple[str, ...]:
    """The short names that match a module of the model."""
    modules = (*structure.layer_modules, EMBEDDINGS, OUTPUT_HEAD)
    return tuple(dict.fromkeys(module.rpartition(".")[2] for module in modules))


def _check(selection: TargetSelection, patterns: Sequence[PathPattern], num_layers: int) -> None:
    for pattern in patterns:
        if len(pattern.text) > MAX_PATTERN_LENGTH:
            message = f"the pattern has {len(pattern.text)} characters, the limit is {MAX_PATTERN_LENGTH}"
            raise InvalidValue(pattern.field, message)
    if not selection.target_modules:
        raise InvalidValue("target_modules", f"is empty: name modules, give a pattern, or write {ALL_LINEAR}")
    if isinstance(selection.target_modules, str):
        for field in ("layers_to_transform", "layers_pattern"):
            if getattr(selection, field):
                message = (
                    "PEFT takes it with a list of target modules only: leave it out, or name the modules in a list"
                )
                raise InvalidValue(field, message)
    if selection.layers_pattern and not selection.layers_to_transform:
        raise InvalidValue("layers_pattern", "says where layers_to_transform counts: give layers_to_transform too")
    for place, index in enumerate(selection.layers_to_transform):
        if not 0 <= index < num_layers:
            message = f"the model has no layer {index}: it has {num_layers} layers, 0 to {num_layers - 1}"
            raise InvalidValue(f"layers_to_transform[{place}]", message)


def _target_rule(
    selection: TargetSelection,
    structure: ModelStructure,
    paths: Sequence[str],
    answers: Mapping[str, Mapping[str, str | None]],
) -> Keeps:
    """What tells whether a path is targeted, before anything is excluded. Raises TargetModulesUnmatched."""
    if selection.is_all_linear:
        return frozenset(structure.module_paths()).difference((EMBEDDINGS, OUTPUT_HEAD)).__contains__
    named = _rule(selection.target_modules, answers.get("target_modules", {}))
    if isinstance(selection.target_modules, str):
        return named
    in_layers = _layer_rule(selection, answers)

    def is_targeted(path: str) -> bool:
        return named(path) and in_layers(path)

    matched = {ending for path in paths if in_layers(path) for ending in _endings(path)}
    unmatched = [(index, name) for index, name in enumerate(selection.target_modules) if name not in matched]
    if unmatched:
        where = " in the chosen layers" if selection.layers_to_transform else ""
        raise TargetModulesUnmatched(unmatched, structure.architecture, available_targets(structure), where)
    return is_targeted


def _rule(names: Names | str, answer: Collection[str]) -> Keeps:
    """What tells whether a path is named: by the matcher's answer to a pattern, or by one of its own endings."""
    if isinstance(names, str):
        return answer.__contains__
    wanted = frozenset(names)
    return lambda path: not wanted.isdisjoint(_endings(path))


def _endings(path: str) -> Iterator[str]:
    """The path, and what follows each of its dots."""
    while path:
        yield path
        path = path.partition(".")[2]


def _layer_rule(selection: TargetSelection, answers: Mapping[str, Mapping[str, str | None]]) -> Keeps:
    if not selection.layers_to_transform:
        return lambda _path: True
    wanted = frozenset(selection.layers_to_transform)

    def index_of(path: str) -> str | None:
        if not selection.layers_pattern:
            found = _FIRST_INDEX.match(path)
            return found["idx"] if found else None
        matching = (answers[f"layers_pattern[{place}]"] for place in range(len(selection.layers_pattern)))
        return next((answer[path] for answer in matching if path in answer), None)

    def is_wanted(path: str) -> bool:
        index = index_of(path)
        return index is not None and int(index) in wanted

    return is_wanted


def _why_nothing(selection: TargetSelection, structure: ModelStructure, targeted: Sequence[str]) -> str:
    if targeted:
        return f"all {len(targeted)} modules that target_modules selects are excluded by exclude_modules"
    there = ", ".join(available_targets(structure))
    example = f"model.layers.0.{structure.layer_modules[0]}"
    return (
        f"the pattern {shown(selection.target_modules)!r} matches no module of a {structure.architecture} model; a"
        f" pattern has to match the whole path, for instance {example}; there are {there}"
    )
