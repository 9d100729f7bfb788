"""Generated layers are those that PEFT counts on the model that transformers builds, without any weights."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ordering_svc.domain.architectures import (
    LAYER_MODULES,
    OTHER_LAYER_MODULES,
    PEFT_VERSION,
    TRANSFORMERS_VERSION,
    ModelStructure,
)
from ordering_svc.domain.generation import generate
from ordering_svc.domain.ordering import LayerRow
from ordering_svc.domain.target_selection import TargetSelection
from ordering_svc.errors import (
    InvalidRequest,
    InvalidValue,
    NoModuleSelected,
    TargetModulesUnmatched,
    TargetModuleUnsupported,
    TooManyLayers,
)
from tests.ordering_svc.domain.peft_oracle import (
    CONFIG_CLASSES,
    NUM_LAYERS,
    counted_by_peft,
    match_here,
    module_names,
)

ARCHITECTURES = sorted(CONFIG_CLASSES)


def counted_by_us(architecture: str, **fields: Any) -> dict[str, int]:
    made = generate(ModelStructure(architecture, NUM_LAYERS), TargetSelection(**fields), [], "m", match_here)
    assert made.layers is not None
    return {layer.path: layer.row for layer in made.layers}


def as_peft_takes_it(fields: dict[str, Any]) -> dict[str, Any]:
    """PEFT tells lists from strings, and absent from empty."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items() if value}


def assert_counted_alike(architecture: str, **fields: Any) -> None:
    expected = counted_by_peft(architecture, **as_peft_takes_it(fields))
    if expected is None:
        with pytest.raises(InvalidRequest):
            counted_by_us(architecture, **fields)
    else:
        assert list(counted_by_us(architecture, **fields).items()) == list(expected.items())


def test_the_tables_were_checked_with_the_versions_that_they_name() -> None:
    assert importlib.metadata.version("transformers") == TRANSFORMERS_VERSION
    assert importlib.metadata.version("peft") == PEFT_VERSION
    assert set(CONFIG_CLASSES) == set(LAYER_MODULES) == set(OTHER_LAYER_MODULES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_tables_hold_every_module_that_transformers_builds(architecture: str) -> None:
    structure = ModelStructure(architecture, NUM_LAYERS)
    adaptable, others = tuple(structure.module_paths()), tuple(structure.other_paths())
    names = module_names(architecture)
    assert sorted((*adaptable, *others)) == sorted(names)
    assert [name for name in names if name in adaptable] == list(adaptable)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_modules_stand_in_the_order_in_which_peft_visits_them(architecture: str) -> None:
    targets = [module.rpartition(".")[2] for module in LAYER_MODULES[architecture]] + ["lm_head", "embed_tokens"]
    assert len(counted_by_us(architecture, target_modules=tuple(targets))) == 2 + NUM_LAYERS * (len(targets) - 2)
    assert_counted_alike(architecture, target_modules=tuple(targets))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("exclude", [(), ("o_proj", "model.layers.1.self_attn.q_proj"), r".*\.[02]\..*"])
def test_all_linear_is_every_linear_layer_but_the_head(architecture: str, exclude: Any) -> None:
    counted = counted_by_us(architecture, target_modules="All-Linear", exclude_modules=exclude)
    assert counted
    assert not {"lm_head", "model.embed_tokens"} & set(counted)
    assert_counted_alike(architecture, target_modules="all-linear", exclude_modules=exclude)


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("llama", {"target_modules": ("v_proj", "q_proj")}),
        ("phi3", {"target_modules": ("qkv_proj", "o_proj")}),
        ("mistral", {"target_modules": ("self_attn.k_proj", "model.layers.1.mlp.up_proj", "0.mlp.down_proj")}),
        ("gemma", {"target_modules": ("lm_head", "gate_proj")}),
        ("llama", {"target_modules": r".*\.(q|v)_proj"}),
        ("llama", {"target_modules": r"^(?!.*\.1\.).*(?:gate|up)_proj$"}),
        ("phi", {"target_modules": r"model\.layers\.\d+\.mlp\.fc[12]|lm_head"}),
        ("llama", {"target_modules": "q_proj"}),  # a string is a pattern: it matches no whole path
        ("llama", {"target_modules": ".*"}),  # blocks too
        ("llama", {"target_modules": r".*self_attn.*"}),
        ("mixtral", {"target_modules": r".*self_attn\..*"}),
        ("qwen2", {"target_modules": ("mlp",)}),
        ("starcoder2", {"target_modules": ("c_fc", "q_proj"), "layers_to_transform": (1,)}),
        ("gemma2", {"target_modules": ("q_proj", "up_proj"), "layers_to_transform": (0, 2)}),
        ("llama", {"target_modules": ("q_proj",), "layers_to_transform": (1,), "layers_pattern": ("layers",)}),
        ("llama", {"target_modules": ("q_proj",), "layers_to_transform": (1,), "layers_pattern": ("h", "lay.*")}),
        ("llama", {"target_modules": ("q_proj",), "layers_to_transform": (1,), "layers_pattern": ("h",)}),
        ("llama", {"target_modules": ("q_proj",), "layers_to_transform": (1,), "layers_pattern": ("h|layers",)}),
        ("llama", {"target_modules": ("q_proj",), "layers_pattern": ("layers",)}),
        ("llama", {"target_modules": "all-linear", "layers_to_transform": (1,)}),
        ("llama", {"target_modules": r".*q_proj", "layers_to_transform": (1,)}),
        ("llama", {"target_modules": ("q_proj", "k_proj"), "exclude_modules": ("1.self_attn.q_proj", "k_proj")}),
        ("llama", {"target_modules": ("q_proj",), "exclude_modules": "self_attn"}),
        ("llama", {"target_modules": ("q_proj",), "exclude_modules": ".*"}),
        ("llama", {"target_modules": ".*mlp.*", "exclude_modules": r".*(mlp|act_fn)"}),
    ],
)
def test_selections_are_those_of_peft(architecture: str, fields: dict[str, Any]) -> None:
    assert_counted_alike(architecture, **fields)


@st.composite
def selections(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """An architecture and the fields of a selection, built of what its modules are called."""
    architecture = draw(st.sampled_from(ARCHITECTURES))
    names = module_names(architecture)
    adaptable = tuple(ModelStructure(architecture, NUM_LAYERS).module_paths())

    def ending(path: str) -> st.SearchStrategy[str]:
        parts = path.split(".")
        return st.integers(1, len(parts)).map(lambda count: ".".join(parts[-count:]))

    endings = st.sampled_from(adaptable).flatmap(ending)
    lists = st.lists(endings, min_size=1, max_size=4, unique=True).map(tuple)
    words = sorted({part for name in names for part in name.split(".")})
    pieces = st.sampled_from(
        [*words, r"\.", ".*", r"\d", r"\d+", "(?:q|v)_proj", "[a-z_]+", "(?!lm)", ".*proj", "|", "?"]
    )
    patterns = st.lists(pieces, min_size=1, max_size=5).map("".join).filter(compiles)
    fields: dict[str, Any] = {"target_modules": draw(st.one_of(lists, patterns, st.just("all-linear")))}
    fields["exclude_modules"] = draw(st.one_of(st.just(()), lists, patterns))
    if isinstance(fields["target_modules"], tuple) and draw(st.booleans()):
        layers = st.lists(st.integers(0, NUM_LAYERS - 1), min_size=1, max_size=2, unique=True)
        fields["layers_to_transform"] = tuple(draw(layers))
        fields["layers_pattern"] = draw(st.sampled_from([(), ("layers",), ("h", "layers"), ("lay.*",)]))
    return architecture, fields


def compiles(pattern: str) -> bool:
    import re

    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


@given(selections())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_selection_is_that_of_peft(drawn: tuple[str, dict[str, Any]]) -> None:
    architecture, fields = drawn
    try:
        ours: dict[str, int] | None = counted_by_us(architecture, **fields)
    except TargetModulesUnmatched:  # the one rule that is stricter than PEFT's: every name has to select something
        return
    except InvalidRequest:
        ours = None
    # Of Mixtral, PEFT may take nothing but parameters of experts, which orderings do not count: nothing is left then.
    expected = counted_by_peft(architecture, **as_peft_takes_it(fields)) or None
    assert (ours is None, list(ours or ())) == (expected is None, list(expected or ()))


def test_names_and_base_model_stand_in_the_document() -> None:
    selection = TargetSelection(("lm_head",))
    document = generate(ModelStructure("llama", 1), selection, ["math", "bio"], "org/model", match_here)
    assert document.order == ("math", "bio")
    assert document.layers == (LayerRow("lm_head", 0),)
    assert document.base_model_id == "org/model"
    assert document.preload_adapters is None


def test_a_target_that_matches_nothing_is_named_with_what_there_is() -> None:
    with pytest.raises(TargetModulesUnmatched) as raised:
        counted_by_us("phi3", target_modules=("o_proj", "q_proj", "_proj"))
    assert [violation.field for violation in raised.value.violations] == ["target_modules[1]", "target_modules[2]"]
    assert "'q_proj'" in raised.value.message
    assert "o_proj, qkv_proj, gate_up_proj, down_proj, embed_tokens, lm_head" in raised.value.message
    with pytest.raises(TargetModulesUnmatched, match="in the chosen layers"):
        counted_by_us("llama", target_modules=("q_proj", "lm_head"), layers_to_transform=(0,))


def test_a_pattern_that_matches_nothing_or_too_much_is_told_what_there_is() -> None:
    with pytest.raises(NoModuleSelected, match=r"whole path, for instance model\.layers\.0\.self_attn\.q_proj"):
        counted_by_us("llama", target_modules="q_proj")
    with pytest.raises(NoModuleSelected, match="all 3 modules"):
        counted_by_us("llama", target_modules=("q_proj",), exclude_modules=("q_proj",))
    with pytest.raises(TargetModuleUnsupported, match=r"selects model\.layers\.0\.self_attn and 2 more"):
        counted_by_us("llama", target_modules=".*self_attn")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ()}, "target_modules: is empty"),
        ({"target_modules": "." * 1025}, "1025 characters, the limit is 1024"),
        (
            {"target_modules": "all-linear", "layers_to_transform": (0,)},
            "layers_to_transform: PEFT takes it with a list",
        ),
        (
            {"target_modules": ("q_proj",), "layers_to_transform": (0, 3)},
            r"to_transform\[1\]: .* no layer 3: .* 0 to 2",
        ),
        ({"target_modules": ("q_proj",), "layers_pattern": ("layers",)}, "give layers_to_transform too"),
    ],
)
def test_fields_that_contradict_each_other_or_the_model_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        counted_by_us("llama", **fields)


def test_more_layers_than_an_ordering_can_name_are_refused() -> None:
    deep = ModelStructure("llama", 9363)  # 7 modules each: 65541
    with pytest.raises(TooManyLayers, match="65541"):
        generate(deep, TargetSelection("all-linear"), [], "m", match_here)
