"""Documents against real files: each kind of spoiling has its code, and what is sound has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ordering_svc.domain import problem_codes
from ordering_svc.domain.ordering import AdapterKind
from ordering_svc.domain.problem_codes import CODES
from ordering_svc.domain.problems import Severity
from ordering_svc.model_config.reader import ModelText
from tests.ordering_svc.small_world import HIDDEN, LAYERS, Adapter, World, lora_tensors, write_safetensors

Spoil = Callable[[Any], Any]  # of a World
Q0, V0, Q1 = list(LAYERS)[:3]
A_OF_Q0, B_OF_Q0 = (f"base_model.model.{Q0}.lora_{half}.weight" for half in "AB")


def preload(place: str) -> Spoil:
    return lambda w: w.document.update(preload_adapters=[{"name": "more", "adapter_model_id": place}])


def in_config(**keys: Any) -> Spoil:
    return lambda w: w.adapters["bio"].config.update(keys)


def in_tensors(**tensors: Any) -> Spoil:
    keys = {"a": A_OF_Q0, "b": B_OF_Q0, "c": "x.weight", "d": "base_model.lora_model.model.x.lora_C.weight"}
    named = {keys[key]: value for key, value in tensors.items()}
    return lambda w: w.adapters["bio"].tensors.update(named)


def in_xlora(**keys: Any) -> Spoil:
    return lambda w: w.xlora.update(keys)


def without(attribute: str, key: str) -> Spoil:
    return lambda w: getattr(w, attribute).pop(key)


def as_lora(spoil: Spoil) -> Spoil:
    def both(world: World) -> None:
        world.kind, world.xlora, world.classifier = AdapterKind.LORA, None, None
        spoil(world)

    return both


WARNINGS = {
    "ADAPTER_NOT_CHECKED",
    "ADAPTER_BEYOND_PLAIN_LORA",
    "ADAPTER_TARGETS_NOT_A_LIST",
    "ADAPTER_TARGETS_DIFFER",
    "ADAPTER_STRAY_FILE",
    "LAYER_NOT_IN_EVERY_ADAPTER",
    "CLASSIFIER_INDEX_TRAP",
    "XLORA_FILES_UNUSED",
    "ROWS_NOT_IN_PEFT_ORDER",
}

SPOILT: list[tuple[str, str, Spoil]] = [
    # code, field, what is spoilt
    ("LAYER_NOT_IN_CHECKPOINT", f'layers["{Q0}"]', without("base", f"{Q0}.weight")),
    ("LAYER_NOT_A_MATRIX", f'layers["{Q0}"]', lambda w: w.base.update({f"{Q0}.weight": ("F32", (2, 2, 2))})),
    ("CHECKPOINT_UNREADABLE", "base_model_id", lambda w: setattr(w, "base", None)),  # see `spoilt`
    ("BASE_MODEL_ID_MISMATCH", "base_model_id", in_xlora(base_model_id="org/other")),
    ("BASE_MODEL_ID_MISMATCH", "base_model_id", in_config(base_model_name_or_path="org/other")),
    ("ADAPTER_NOT_CHECKED", "preload_adapters[0].adapter_model_id", preload("someone/adapter")),
    ("ADAPTER_FILE_MISSING", "preload_adapters[0].adapter_model_id", preload("./nothing/here")),
    ("ADAPTER_FILE_MISSING", "preload_adapters[0].adapter_model_id", preload("xlora")),
    ("ADAPTER_FILE_OUTSIDE", "preload_adapters[0].adapter_model_id", preload("/etc")),
    ("ADAPTER_FILE_OUTSIDE", "preload_adapters[0].adapter_model_id", preload("../..")),
    ("ADAPTER_FILE_MISSING", "preload_adapters[0].adapter_model_id", preload("a\0b")),
    ("ADAPTER_FILE_MISSING", "preload_adapters[0].adapter_model_id", preload("x/" * 9000)),
    ("ADAPTER_FILE_MISSING", "order[1]", without("adapters", "bio")),
    ("ADAPTER_FILE_MISSING", "order[1]", lambda w: setattr(w.adapters["bio"], "config", None)),
    ("ADAPTER_FILE_MISSING", "order[1]", lambda w: setattr(w.adapters["bio"], "tensors", None)),
    ("ADAPTER_FILE_MISSING", "order", lambda w: setattr(w, "classifier", None)),
    ("ADAPTER_FILE_MISSING", "order", lambda w: setattr(w, "xlora", None)),
    ("ADAPTER_FILE_MALFORMED", "order[1]", lambda w: setattr(w.adapters["bio"], "config", "{")),
    ("ADAPTER_FILE_MALFORMED", "order[1]", lambda w: setattr(w.adapters["bio"], "config", "[" * 99_999)),
    ("ADAPTER_FILE_MALFORMED", "order[1]", lambda w: setattr(w.adapters["bio"], "config", '{"r": 1, "r": 2}')),
    ("ADAPTER_FILE_MALFORMED", "order", lambda w: setattr(w, "xlora", "[1]")),
    ("ADAPTER_CONFIG_INVALID", "order[1]", in_config(r=True)),
    ("ADAPTER_CONFIG_INVALID", "order[1]", in_config(r=0)),
    ("ADAPTER_CONFIG_INVALID", "order[1]", in_config(lora_alpha="8")),
    ("ADAPTER_CONFIG_INVALID", "order[1]", in_config(rank_pattern=[1])),
    ("ADAPTER_CONFIG_INVALID", "order[1]", in_config(base_model_name_or_path=3)),
    ("ADAPTER_TYPE_WRONG", "order[1]", in_config(peft_type="IA3")),
    ("ADAPTER_BEYOND_PLAIN_LORA", "order[1]", in_config(use_dora=True)),
    ("ADAPTER_BEYOND_PLAIN_LORA", "order[1]", in_config(bias="all")),
    ("ADAPTER_BEYOND_PLAIN_LORA", "order[1]", in_config(init_lora_weights="pissa")),
    ("ADAPTER_TARGETS_NOT_A_LIST", "order[1]", in_config(target_modules=".*_proj")),
    ("ADAPTER_TARGETS_DIFFER", "order[1]", in_config(target_modules=["q_proj"])),
    ("ADAPTER_STRAY_FILE", "order[1]", lambda w: w.adapters["bio"].others.update({"README.md": "hello"})),
    ("ADAPTER_TENSOR_UNKNOWN", "order[1]", in_tensors(c=("F32", (2, 2)))),
    ("ADAPTER_TENSOR_DTYPE", "order[1]", in_tensors(a=("I8", (2, HIDDEN)))),
    ("ADAPTER_TENSOR_SHAPE", "order[1]", in_tensors(a=("F32", (2, HIDDEN, 1)))),
    ("ADAPTER_TENSOR_SHAPE", "order[1]", in_tensors(a=("F32", (3, HIDDEN)))),
    ("ADAPTER_TENSOR_SHAPE", "order[1]", in_tensors(a=("F32", (0, HIDDEN)), b=("F32", (HIDDEN, 0)))),
    ("ADAPTER_TENSOR_UNPAIRED", "order[1]", lambda w: w.adapters["bio"].tensors.pop(B_OF_Q0)),
    ("ADAPTER_RANK_MISMATCH", "order[1]", in_config(r=4)),
    ("ADAPTER_RANK_MISMATCH", "order[1]", in_config(rank_pattern={"q_proj": 4})),
    ("ADAPTER_SHAPE_MISMATCH", "order[1]", in_tensors(a=("F32", (2, HIDDEN + 1)))),
    (
        "ADAPTER_LAYER_UNKNOWN",
        "order[1]",
        lambda w: w.adapters["bio"].tensors.update(lora_tensors({"model.layers.7.mlp.up_proj": (16, 8)})),
    ),
    ("ADAPTER_LAYER_NOT_IN_ORDERING", "order[0]", lambda w: w.document["layers"].pop(list(LAYERS)[-1])),
    (
        "LAYER_NOT_IN_ANY_ADAPTER",
        "layers",
        lambda w: w.document["layers"].update({"model.layers.1.mlp.up_proj": len(LAYERS)}),
    ),
    (
        "LAYER_NOT_IN_EVERY_ADAPTER",
        "layers",
        lambda w: [w.adapters["bio"].tensors.pop(key) for key in (A_OF_Q0, B_OF_Q0)],
    ),
    ("XLORA_CONFIG_INVALID", "order", in_xlora(hidden_size="8")),
    ("XLORA_CONFIG_INVALID", "order", in_xlora(xlora_depth=0)),
    ("XLORA_CONFIG_INVALID", "order", in_xlora(xlora_depth=10**9)),
    ("XLORA_CONFIG_INVALID", "order", in_xlora(top_k_lora=3)),
    ("XLORA_CONFIG_INVALID", "order", in_xlora(use_bias=1)),
    ("XLORA_CONFIG_INVALID", "order", in_xlora(xlora_dropout_p=2)),
    ("XLORA_CONFIG_INVALID", "order", in_xlora(softmax_temperature=0)),
    ("XLORA_CONFIG_INVALID", "order", in_xlora(adapters=3)),
    ("XLORA_CONFIG_INVALID", "order", without("xlora", "base_model_id")),
    ("XLORA_ORDER_DIFFERS", "order", in_xlora(adapters=["bio", "math"])),
    ("XLORA_ORDER_DIFFERS", "order", in_xlora(adapters={"math": "", "bio": "", "more": ""})),
    ("XLORA_HIDDEN_SIZE", "base_model_id", in_xlora(hidden_size=16)),
    ("CLASSIFIER_ROWS", "order", lambda w: w.classifier.update({"last.weight": ("F32", (7, HIDDEN))})),
    ("CLASSIFIER_ROWS", "order", in_xlora(layerwise_scalings=False)),
    ("CLASSIFIER_TENSORS_WRONG", "order", without("classifier", "last.bias")),
    ("CLASSIFIER_TENSORS_WRONG", "order", in_xlora(use_bias=False)),
    ("CLASSIFIER_TENSORS_WRONG", "order", in_xlora(xlora_depth=2)),
    ("CLASSIFIER_SHAPE", "order", lambda w: w.classifier.update({"last.weight": ("F32", (8, HIDDEN + 1))})),
    ("CLASSIFIER_SHAPE", "order", lambda w: w.classifier.update({"last.bias": ("F32", (3,))})),
    ("CLASSIFIER_SHAPE", "order", lambda w: (w.deepen(2, 6, indices=(0,)), w.xlora.update(xlora_size=5))),
    ("CLASSIFIER_INDEX_TRAP", "order", lambda w: w.deepen(3, HIDDEN, indices=(0, 3))),
    ("CLASSIFIER_INDEX_TRAP", "order", lambda w: w.deepen(3, HIDDEN, indices=(0, 3), relu=False)),
    ("CLASSIFIER_INDEX_TRAP", "order", lambda w: w.deepen(2, 6, indices=(0,))),
    ("CLASSIFIER_LAYERS_LOST", "order", lambda w: w.to_peft(1, ())),
    ("CLASSIFIER_LAYERS_LOST", "order", lambda w: w.to_peft(3, (1, 2))),
    ("CLASSIFIER_LAYERS_LOST", "order", lambda w: (w.out_of_peft(), w.xlora.update(xlora_depth=2))),
    ("ADAPTER_TENSOR_UNKNOWN", "order[1]", in_tensors(d=("F32", (2, 2)))),
    ("XLORA_FILES_UNUSED", "order", lambda w: setattr(w, "kind", AdapterKind.LORA)),
]


@pytest.mark.parametrize(
    ("code", "field", "spoil"), SPOILT, ids=[f"{i}-{code}" for i, (code, _, _) in enumerate(SPOILT)]
)
def test_each_kind_of_spoiling_has_its_code_at_its_field(code: str, field: str, spoil: Spoil, tmp_path: Path) -> None:
    world = World()
    spoil(world)
    world.write(tmp_path)
    if code == "CHECKPOINT_UNREADABLE":
        (tmp_path / "base" / "model.safetensors").write_bytes(b"\xff" * 40)

    found = [problem for problem in world.problems(tmp_path) if (problem.code, problem.field) == (code, field)]

    assert len(found) == 1, world.problems(tmp_path)
    assert (found[0].severity is Severity.WARNING) == (code in WARNINGS)
    assert len(found[0].message) < 1000
    assert str(tmp_path) not in found[0].message  # where the service keeps its files is its own affair


def test_what_is_sound_has_no_problems(tmp_path: Path) -> None:
    World().write(tmp_path)
    assert World().problems(tmp_path) == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.to_peft(1, (0,)),
        lambda w: w.to_peft(3, (0, 1, 2)),
        lambda w: w.out_of_peft(),
        lambda w: w.adapters["bio"].tensors.update({"internal_xlora_classifier.last.bias": ("F32", (8,))}),
        lambda w: w.deepen(2, HIDDEN, indices=(0,), relu=False),
        lambda w: setattr(w, "kind", AdapterKind.UNSPECIFIED),  # the files show that it is an X-LoRA
        in_config(base_model_name_or_path="/home/me/base"),  # a folder's name says nothing
        in_xlora(adapters={"bio": "x", "math": "y"}),  # an object has no order
        as_lora(lambda w: w.adapters),
        as_lora(lambda w: w.document.update(order=["math"])),
        as_lora(lambda w: w.document.update(preload_adapters=[{"name": "bio", "adapter_model_id": "xlora/bio"}])),
        as_lora(lambda w: (w.document.update(order=["one"]), w.__dict__.update(place="xlora/math"))),
    ],
)
def test_other_sound_worlds_have_no_problems_either(change: Spoil, tmp_path: Path) -> None:
    world = World()
    change(world)
    world.write(tmp_path)
    assert world.problems(tmp_path) == ()


def test_a_layer_that_a_lora_leaves_out_is_only_a_warning(tmp_path: Path) -> None:
    world = World()
    as_lora(lambda w: w.document["layers"].update({"model.layers.1.mlp.up_proj": len(LAYERS)}))(world)
    world.write(tmp_path)
    (problem,) = world.problems(tmp_path)
    assert (problem.code, problem.severity) == ("LAYER_NOT_IN_ANY_ADAPTER", Severity.WARNING)


def test_a_config_alone_tells_the_hidden_size(tmp_path: Path) -> None:
    world = World()
    world.write(tmp_path)
    model = ModelText('{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 9}')
    assert [problem.code for problem in world.problems(tmp_path, model)] == ["XLORA_HIDDEN_SIZE"]


def test_a_rank_pattern_that_is_right_is_no_problem(tmp_path: Path) -> None:
    world = World()
    world.adapters["bio"].config["rank_pattern"] = {"self_attn.q_proj": 4}
    world.adapters["bio"].tensors = lora_tensors(rank=2) | lora_tensors(
        {path: shape for path, shape in LAYERS.items() if path.endswith("q_proj")}, rank=4
    )
    world.write(tmp_path)
    assert [problem.code for problem in world.problems(tmp_path)] == ["ADAPTER_BEYOND_PLAIN_LORA"]  # mistral.rs


def test_a_missing_adapter_is_told_with_the_folders_that_are_there(tmp_path: Path) -> None:
    world = World()
    world.document["order"] = ["math", "biology"]
    world.write(tmp_path)
    (problem,) = [p for p in world.problems(tmp_path) if p.code == "ADAPTER_FILE_MISSING"]
    assert "its folders: `bio`, `math`" in problem.message


def test_links_to_outside_are_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    world = World()
    world.write(root)
    write_safetensors(tmp_path / "secret.safetensors", lora_tensors())
    for name in ("math/adapter_model.safetensors", "xlora_classifier.safetensors"):
        (root / "xlora" / name).unlink()
        (root / "xlora" / name).symlink_to(tmp_path / "secret.safetensors")
    (root / "xlora" / "bio").rename(tmp_path / "bio")
    (root / "xlora" / "bio").symlink_to(tmp_path / "bio")
    found = [(p.code, p.field) for p in world.problems(root)]
    assert found.count(("ADAPTER_FILE_OUTSIDE", "order[0]")) == 1
    assert found.count(("ADAPTER_FILE_OUTSIDE", "order[1]")) == 1
    assert found.count(("ADAPTER_FILE_OUTSIDE", "order")) == 1


def test_a_pipe_in_place_of_a_file_does_not_hold_anybody_up(tmp_path: Path) -> None:
    import os

    world = World()
    world.adapters["bio"].tensors = None
    world.write(tmp_path)
    os.mkfifo(tmp_path / "xlora" / "bio" / "adapter_model.safetensors")
    assert "ADAPTER_FILE_MALFORMED" in [problem.code for problem in world.problems(tmp_path)]


def test_a_pickle_is_named_and_not_opened(tmp_path: Path) -> None:
    world = World()
    world.adapters["bio"] = Adapter(world.adapters["bio"].config, None, {"adapter_model.bin": "cos\nsystem\n"})
    world.write(tmp_path)
    assert any("could run code" in problem.message for problem in world.problems(tmp_path))


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    world = World()
    for code, _, spoil in SPOILT:
        if code in ("ADAPTER_TENSOR_UNKNOWN", "ADAPTER_TYPE_WRONG", "XLORA_ORDER_DIFFERS", "LAYER_NOT_IN_CHECKPOINT"):
            spoil(world)
    world.document["order"] += ["math", "more"]
    world.write(tmp_path)
    codes = {problem.code for problem in world.problems(tmp_path)}
    assert codes >= {"ORDER_DUPLICATE", "ADAPTER_TENSOR_UNKNOWN", "ADAPTER_TYPE_WRONG", "XLORA_ORDER_DIFFERS"}
    assert codes >= {"CLASSIFIER_ROWS", "LAYER_NOT_IN_CHECKPOINT"}


def test_every_code_is_explained_in_sentences() -> None:
    for code, meaning in CODES.items():
        assert code.isupper()
        for sentence in (meaning.summary, meaning.hint):
            assert sentence[0].isupper() or sentence.startswith("`"), code
            assert sentence.endswith("."), code
    assert len({meaning.summary for meaning in CODES.values()}) == len(CODES)
    assert Path(problem_codes.__file__).read_text().count('": Meaning(') == len(CODES)  # each code stands there once


def test_every_code_is_reached_by_a_test_and_used_in_the_code() -> None:
    """Table-driven tests name each code; a code that nothing yields would be a promise without a keeper."""
    tests = Path(__file__).parent
    named = "".join(path.read_text() for path in tests.rglob("test_*.py"))
    source = "".join(
        path.read_text()
        for path in (tests.parent.parent / "ordering_svc" / "domain").glob("*.py")
        if path.name != "problem_codes.py"
    )
    assert [code for code in CODES if f'"{code}"' not in named] == []
    assert [code for code in CODES if f'"{code}"' not in source] == []
