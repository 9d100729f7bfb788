"""The linter as a program: exit statuses, its three ways of writing, and positions that a workflow can point at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from ordering_svc.domain.problem_codes import CODES
from ordering_svc.lint.command import app
from tests.ordering_svc.small_world import MODEL_ID, World

GOOD = '{\n  "order": ["a"],\n  "layers": {"model.layers.0.self_attn.q_proj": 0},\n  "base_model_id": "org/base"\n}\n'
BAD = '{\n  "order": ["a",\n     "a"],\n  "layers": {"lm_head": 0, "x%": 4},\n  "note": 1\n}\n'
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good and a bad file, which is the current one."""
    (tmp_path / "good.json").write_text(GOOD)
    (tmp_path / "bad.json").write_text(BAD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> tuple[int, str, str]:
    result = typer.testing.CliRunner().invoke(app, list(words), catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def test_a_clean_file_says_nothing_and_exits_with_0(files: Path) -> None:
    assert run("good.json") == (0, "", "files: 1, errors: 0, warnings: 0\n")


def test_problems_are_told_with_place_code_and_what_to_do(files: Path) -> None:
    code, out, err = run("good.json", "bad.json", "--kind", "xlora")
    assert (code, err) == (1, "files: 2, errors: 3, warnings: 2\n")
    lines = out.splitlines()
    assert "bad.json:1:1: error BASE_MODEL_ID_MISSING: base_model_id is missing." in lines
    assert (
        "bad.json:3:6: error ORDER_DUPLICATE: The adapter `a` is already order[0]: each name may be there once."
        in lines
    )
    assert "    Keep the name at one place." in lines
    assert any(line.startswith("bad.json:4:14: warning XLORA_LM_HEAD") for line in lines)
    assert any(line.startswith("bad.json:5:3: warning UNKNOWN_KEY") for line in lines)


def test_annotations_of_a_workflow_point_at_line_and_column(files: Path) -> None:
    code, out, err = run("bad.json", "--format", "github", "--quantized", "llama")
    assert (code, err) == (1, "")
    (line,) = [line for line in out.splitlines() if "LAYER_NOT_SUPPORTED" in line]
    assert line.startswith("::error file=bad.json,line=4,col=28,title=LAYER_NOT_SUPPORTED::Got a layer name `x%25` in")
    assert "::warning file=bad.json,line=5,col=3,title=UNKNOWN_KEY::" in out


def test_json_holds_every_field(files: Path) -> None:
    code, out, err = run("good.json", "bad.json", "--format", "json")
    good, bad = json.loads(out)
    assert (code, err) == (1, "")
    assert good == {"path": "good.json", "valid": True, "problems": []}
    assert {"code", "severity", "field", "message", "hint", "file", "line", "column"} == bad["problems"][0].keys()


def test_warnings_fail_only_when_told_to_be_strict(files: Path) -> None:
    (files / "warned.json").write_text(GOOD.replace('"base_model_id"', '"extra": 1, "base_model_id"'))
    assert run("warned.json")[0] == 0
    assert run("warned.json", "--strict")[0] == 1
    assert run("warned.json", "--strict", "--ignore", "UNKNOWN_KEY") == (0, "", "files: 1, errors: 0, warnings: 0\n")
    assert run("bad.json", "--ignore", "ORDER_DUPLICATE")[0] == 1  # an error stays one


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("missing.json",),
        (".",),
        ("good.json", "--format", "xml"),
        ("good.json", "--quantized", "bert"),
        ("good.json", "--ignore", "NO_SUCH_CODE"),
        ("good.json", "--adapters", "nowhere"),
        ("good.json", "--model", "./nowhere"),
        ("good.json", "--model", "config.json"),
    ],
)
def test_wrong_use_and_what_cannot_be_read_exit_with_2(files: Path, words: tuple[str, ...]) -> None:
    (files / "config.json").write_text("{}")
    code, _, err = run(*words)
    assert code == 2
    assert err


def test_an_unreadable_file_does_not_keep_the_others_from_being_judged(files: Path) -> None:
    code, out, err = run("missing.json", "bad.json")
    assert code == 2
    assert "ORDER_DUPLICATE" in out
    assert "error: missing.json: No such file or directory" in err


def test_model_and_adapters_are_judged_by_their_headers(files: Path) -> None:
    world = World()
    world.xlora["hidden_size"] = 9
    world.document["preload_adapters"] = [{"name": "more", "adapter_model_id": "xlora/math"}]  # beside the file
    world.write(files)
    (files / "deep").mkdir()
    (files / "world.json").write_text(json.dumps(world.document))
    code, out, _ = run("world.json", "--model", "base", "--adapters", "xlora")
    assert code == 1
    assert [line.split()[2] for line in out.splitlines() if line.startswith("world")] == [
        "CLASSIFIER_SHAPE:",
        "XLORA_HIDDEN_SIZE:",
    ]
    assert MODEL_ID in world.document["base_model_id"]


def test_it_runs_as_a_program_and_from_the_client_command(files: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "protos", ROOT / "clients")))}

    def program(*words: str) -> Any:
        return subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, env=environment, check=False
        )

    for words in (("ordering_svc.lint",), ("loramux.cli", "ordering", "lint")):
        assert program(*words, "good.json").returncode == 0
        found = program(*words, "bad.json", "--strict")
        assert (found.returncode, "ORDER_DUPLICATE" in found.stdout) == (1, True)
    assert json.loads(program("loramux.cli", "ordering", "lint", "bad.json", "--json").stdout)[0]["valid"] is False
    assert "--strict" in program("loramux.cli", "ordering", "lint", "--help").stdout


def test_without_what_it_needs_it_says_how_to_get_it() -> None:
    program = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from ordering_svc.lint.__main__ import main; sys.exit(main())"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    assert found.returncode == 2
    assert "pip install 'loramux[ordering]'" in found.stderr


def test_all_codes_are_explained_on_request() -> None:
    code, out, _ = run("--codes")
    assert code == 0
    assert [line.partition(":")[0] for line in out.splitlines()[::2]] == list(CODES)


def test_the_hook_of_pre_commit_runs_this_module() -> None:
    hook = (ROOT / ".pre-commit-hooks.yaml").read_text()
    assert "entry: python -m ordering_svc.lint" in hook
    assert 'additional_dependencies: [".[ordering]"]' in hook
