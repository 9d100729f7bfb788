"""adapter_config.json: understood or refused by name."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_svc.adapters.peft_config import read_peft_config
from inference_svc.adapters.peft_fields import IGNORED, REFUSED, UNDERSTOOD
from inference_svc.adapters.peft_patterns import PatternError, compile_patterns
from inference_svc.adapters.peft_targets import PeftTargets
from inference_svc.errors import AdapterMalformed, AdapterUnsupported, SourceNotFound

PATHS = [f"model.layers.{i}.{m}" for i in (0, 1, 10) for m in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")]
PIECES = st.sampled_from(
    ["q_proj", "o_proj", "model", "layers", r"\.", ".", "0", "1", ".*", r"\d+", "^", "_proj", "(0|1)", "x?"]
)


@settings(deadline=None)
@given(st.lists(st.lists(PIECES, min_size=1, max_size=4).map("".join), max_size=4, unique=True), st.sampled_from(PATHS))
def test_patterns_choose_the_value_that_peft_chooses(patterns: list[str], path: str) -> None:
    from peft.utils.other import get_pattern_key

    values = {pattern: index + 1.0 for index, pattern in enumerate(patterns)}
    try:
        ours = compile_patterns(values)
    except PatternError:
        assert any(pattern.count("*") + pattern.count("+") >= 3 for pattern in patterns)
        return
    assert ours.value_for(path, 99.0) == values.get(get_pattern_key(list(values), path), 99.0)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+",
        "(a|a)*b",
        ".*.*.*.*.*",
        "(a|aa)" * 30,
        ".?" * 22,
        ".*.*.*" + "(.|.)" * 4,
        "(?=a)",
        r"(a)\1",
        "(",
        "a" * 3000,
        "a{9}{9}",
        "[[a]",
    ],
)
def test_a_pattern_that_is_broken_or_could_run_for_ages_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match="pattern"):
        compile_patterns({pattern: 1.0})


@pytest.mark.parametrize(
    "pattern",
    [
        r"model\.layers\.(\d+)\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj",
        r".*layers.*(q_proj|k_proj|v_proj|o_proj).*",
        r".*\.(self_attn|mlp)\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$",
        r"^(?:model\.)?layers\.[0-9]{1,2}\.mlp\..*",
        r"(?:model\.layers\.(?:0|1|2|3|4|5|6|7)\.mlp\.down_proj|^model\.embed_tokens$)",
    ],
)
def test_patterns_as_people_write_them_are_not_taken_for_slow_ones(pattern: str) -> None:
    compile_patterns({pattern: 1.0})


def test_many_patterns_are_judged_together() -> None:
    names = {f"model.layers.{i}.self_attn.q_proj": 1.0 for i in range(1000)}
    assert compile_patterns(names).value_for("model.layers.999.self_attn.q_proj", 0.0) == 1.0
    with pytest.raises(PatternError, match="more than 1024 patterns"):
        compile_patterns(names | {str(i): 1.0 for i in range(25)})
    slow = {f".*.*.*{i}": 1.0 for i in range(9)}
    compile_patterns(slow)
    with pytest.raises(PatternError, match="could take very long"):
        compile_patterns(slow | {".*.*.*x": 1.0})


def config_folder(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / "pirate"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(text)
    return folder


def test_scales_follow_alpha_rank_patterns_and_rslora(tmp_path: Path) -> None:
    text = '{"r": 4, "lora_alpha": 8, "rank_pattern": {"o_proj": 16}, "alpha_pattern": {"layers.1.*": 3.5}}'
    config = read_peft_config(config_folder(tmp_path, text))
    assert [config.rank_for(p) for p in ("model.q_proj", "model.o_proj")] == [4, 16]
    assert config.scale_for("model.layers.0.q_proj") == 2.0
    assert config.scale_for("model.layers.1.o_proj") == 3.5 / 16
    (tmp_path / "pirate" / "adapter_config.json").write_text('{"r": 16, "lora_alpha": 8, "use_rslora": true}')
    assert read_peft_config(tmp_path / "pirate").scale_for("q_proj") == 8 / math.sqrt(16)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"r": NaN}', "NaN"),
        ('{"r": 1, "r": 2}', "`r` appears twice"),
        ("[" * 100_000, "nested"),
        ('{"a": "' + "x" * (256 << 10) + '"}', "larger than 262144 bytes"),
        ('{"a": [' + "[], " * 1000 + "1]}", "more than 1000 objects and lists"),
        ("{" + ", ".join(f'"{i}": 0' for i in range(20_000)) + ', "19999": 0}', "`19999` appears twice"),
        ('{"r": 0}', "`r` is 0"),
        ('{"r": true}', "`r` is true"),
        ('{"r": "8"}', '`r` is "8"'),
        ('{"lora_alpha": null}', "`lora_alpha` is null"),
        ('{"lora_alpha": 1e999}', "`lora_alpha` is"),
        ('{"use_rslora": 1}', "`use_rslora` is 1"),
        ('{"target_modules": [1]}', "`target_modules`"),
        ('{"layers_to_transform": [-1]}', "`layers_to_transform`"),
        ('{"rank_pattern": []}', "`rank_pattern`"),
        ('{"rank_pattern": {"q": 1.5}}', "1.5 for 'q'"),
        ('{"alpha_pattern": {"(": 1}}', "not a regular expression"),
        ('{"base_model_name_or_path": 3}', "`base_model_name_or_path` is 3"),
    ],
)
def test_a_broken_config_is_refused_with_file_key_and_value(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(AdapterMalformed, match=re.escape(said)) as caught:
        read_peft_config(config_folder(tmp_path, text))
    assert "pirate/adapter_config.json" in caught.value.message


def test_a_config_that_is_not_utf8_or_missing_is_refused(tmp_path: Path) -> None:
    folder = config_folder(tmp_path, "{}")
    (folder / "adapter_config.json").write_bytes(b'{"r\xff": 1}')
    with pytest.raises(AdapterMalformed, match="not UTF-8"):
        read_peft_config(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(SourceNotFound, match=r"pirate/adapter_config\.json is missing"):
        read_peft_config(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bias", '"all"'),
        ("modules_to_save", '["lm_head"]'),
        ("use_bdlora", '{"nblocks": 2}'),
        ("arrow_config", '{"top_k": 2}'),
        ("kasa_config", '{"beta": 1}'),
        ("velora_config", '{"num_groups": 2}'),
        ("monteclora_config", '{"a": 1}'),
        ("alora_invocation_tokens", "[1]"),
        ("trainable_token_indices", "[1]"),
        ("layer_replication", "[[0, 1]]"),
        ("lora_bias", "true"),
        ("megatron_config", '{"a": 1}'),
        ("fan_in_fan_out", "true"),
        ("init_lora_weights", '"pissa_niter_4"'),
        ("init_lora_weights", '"olora"'),
        ("init_lora_weights", '"loftq"'),
        ("init_lora_weights", '"corda"'),
        ("init_lora_weights", '"lora_ga"'),
        ("peft_type", '"XLORA"'),
        ("task_type", '"SEQ_CLS"'),
        ("use_qalora", "true"),
        ("a_key_of_tomorrow", "0.5"),
    ],
)
def test_what_would_change_the_maths_is_refused_by_name(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(AdapterUnsupported, match=f"`{key}`"):
        read_peft_config(config_folder(tmp_path, f'{{"{key}": {value}}}'))


def test_every_field_of_the_installed_peft_is_in_one_table() -> None:
    from peft import LoraConfig

    tables = [UNDERSTOOD, set(IGNORED), set(REFUSED)]
    known = set().union(*tables)
    assert {field.name for field in dataclasses.fields(LoraConfig)} == known
    assert sum(map(len, tables)) == len(known)


def test_all_unknown_keys_are_listed_with_their_values(tmp_path: Path) -> None:
    text = '{"warp": 2, "weft": {"a": 1}, "nothing": null, "off": false, "bare": 0}'
    said = r"unknown keys.*not supported: `warp`: 2; `weft`: {\"a\": 1}$"
    with pytest.raises(AdapterUnsupported, match=said) as caught:
        read_peft_config(config_folder(tmp_path, text))
    assert caught.value.metadata["keys"] == "warp,weft"


def test_all_keys_that_are_refused_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(AdapterUnsupported, match=r"`lora_bias` \(.*; `use_qalora` \("):
        read_peft_config(config_folder(tmp_path, '{"use_qalora": true, "lora_bias": true}'))


@pytest.mark.parametrize("init", ["true", "false", "null", '"gaussian"', '"orthogonal"', '"eva"', '"mica"'])
def test_initialisations_that_leave_the_base_alone_are_accepted(tmp_path: Path, init: str) -> None:
    read_peft_config(config_folder(tmp_path, f'{{"init_lora_weights": {init}, "eva_config": {{"rho": 2.0}}}}'))


NAMES = st.sampled_from(["q_proj", "o_proj", "self_attn.q_proj", "model.layers.1.mlp.up_proj", "proj", "lm_head"])
REGEXES = st.sampled_from([r".*\.(q|o)_proj", r"model\.layers\.[01]\..*", "lm_head", "all-linear", "q_proj"])


@settings(deadline=None)
@given(
    modules=REGEXES | st.lists(NAMES, min_size=1, max_size=3),
    exclude=st.none() | REGEXES.filter(lambda text: text != "all-linear") | st.lists(NAMES, max_size=2),
    layers=st.none() | st.integers(0, 2) | st.lists(st.integers(0, 10), max_size=2),
    pattern=st.none() | st.sampled_from(["layers", "h", "model.layers", ["layers", "h"], []]),
)
def test_modules_are_chosen_as_peft_chooses_them(
    modules: str | list[str], exclude: str | list[str] | None, layers: int | list[int] | None, pattern: object
) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    keys: dict[str, object] = {"target_modules": modules, "exclude_modules": exclude}
    if not isinstance(modules, str):
        keys |= {"layers_to_transform": layers, "layers_pattern": pattern if layers is not None else None}
    theirs = LoraConfig(**keys)
    with tempfile.TemporaryDirectory() as folder:
        ours = read_peft_config(config_folder(Path(folder), json.dumps(keys))).targets
    assert ours is not None
    for path in [*PATHS, "lm_head"]:
        if modules == "all-linear":  # PEFT has replaced it by a list before it asks
            continue
        chosen = check_target_module_exists(theirs, path)
        assert ours.contain(path) == (bool(chosen) and type(chosen).__name__ != "_ExcludedModule"), path


def test_every_default_of_the_installed_peft_is_accepted(tmp_path: Path) -> None:
    from peft import LoraConfig

    LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM").save_pretrained(tmp_path)
    assert read_peft_config(tmp_path).targets == PeftTargets("all-linear")
    text = '{"unknown": null, "other": false, "third": [], "fourth": {}, "init_lora_weights": "gaussian"}'
    assert read_peft_config(config_folder(tmp_path, text)).r == 8
