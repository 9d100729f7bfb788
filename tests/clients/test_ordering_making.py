"""`loramux ordering generate|set-names|add-preload|remove-preload`: what is asked, what is sent, what is written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests.clients.command import Run, parsed
from tests.clients.fakes import FakeServices

FILE = {"order": ["a"], "base_model_id": "m", "preload_adapters": [{"name": "math", "adapter_model_id": "org/math"}]}


class Terminal(io.StringIO):
    """Standard input with somebody at it."""

    def isatty(self) -> bool:
        """They can be asked."""
        return True


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An ordering file."""
    path = tmp_path / "start.json"
    path.write_text(json.dumps(FILE))
    return path


def test_generate_without_arguments_asks_on_a_terminal(
    run: Run, services: FakeServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("org/model\nq_proj, v_proj\nmath,bio\nmade.json\n"))
    code, _out, err = run("ordering", "generate")
    assert code == 0
    asked = ("Base model", "Target modules", "Adapter names", "Output file")
    assert [err.index(question) for question in asked] == sorted(err.index(question) for question in asked)
    request = services.ordering.seen[-1]
    assert (request.model.hub_id, list(request.adapter_names)) == ("org/model", ["math", "bio"])
    assert list(request.targets.names.names) == ["q_proj", "v_proj"]
    assert json.loads((tmp_path / "made.json").read_text())["order"] == ["math", "bio"]


def test_only_what_is_missing_is_asked_and_stdout_is_the_file_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("q_proj\n"))
    code, out, err = run("ordering", "generate", "--model", "org/model", "--base-model-id", "m")
    assert (code, json.loads(out)["base_model_id"]) == (0, "m")
    assert "Target modules" in err
    assert "Base model" not in err


@pytest.mark.parametrize("words", [(), ("--model", "org/model"), ("--targets", "q_proj")])
def test_nothing_is_asked_where_nobody_sits(run: Run, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("org/model\nq_proj\n\nmade.json\n"))
    code, _out, err = run("ordering", "generate", *words)
    assert code == 2
    assert "is missing" in err


def test_nothing_is_asked_for_programs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("org/model\n"))
    assert "--model is missing" in parsed(run("ordering", "generate", "--json"), code=2)["error"]["message"]


def test_every_form_of_selection_is_sent(run: Run, services: FakeServices) -> None:
    start = ("ordering", "generate", "--model", "org/model")
    assert run(*start, "--targets", "All-Linear", "--exclude-pattern", r".*\.1\..*", "--save", "made")[0] == 0
    request = services.ordering.seen[-1]
    assert (request.targets.all_linear, request.exclude_modules.pattern) == (True, r".*\.1\..*")
    assert request.destination.ordering_id == "made"
    layers = ("--layers", "0,2", "--layers-pattern", "layers", "--exclude", "k_proj")
    assert run(*start, "--targets", "q_proj,k_proj", *layers)[0] == 0
    request = services.ordering.seen[-1]
    assert (list(request.layers_to_transform), list(request.layers_pattern)) == ([0, 2], ["layers"])
    assert list(request.exclude_modules.names.names) == ["k_proj"]
    assert run(*start, "--target-pattern", ".*q_proj")[0] == 0
    assert services.ordering.seen[-1].targets.pattern == ".*q_proj"
    assert run(*start, "--targets", "q_proj", "--layers", "x")[0] == 2


def test_files_are_derived_by_the_service_and_not_stored(run: Run, services: FakeServices, file: Path) -> None:
    assert json.loads(run("ordering", "set-names", str(file), "--adapters", "x,y")[1]) == {**FILE, "order": ["x", "y"]}
    request = services.ordering.seen[-1]
    assert (request.json, request.name, list(request.adapter_names.names)) == (file.read_bytes(), "", ["x", "y"])
    assert not request.HasField("destination")
    place = ("--adapter-model-id", "org/x")
    assert run("ordering", "add-preload", str(file), "--adapters", "bio", *place, "-o", "made.json")[0] == 0
    request = services.ordering.seen[-1]
    assert [(a.name, a.adapter_model_id) for a in request.add_preload_adapters] == [("bio", "org/x")]
    assert run("ordering", "remove-preload", str(file), "--adapters", "math")[0] == 0
    assert list(services.ordering.seen[-1].remove_preload_adapters) == ["math"]
    assert run("ordering", "remove-preload", str(file), "--adapters", "math", "--save", "x")[0] == 2
    assert run("ordering", "set-names", "nowhere.json", "--adapters", "z")[0] == 1


def test_a_stored_ordering_is_derived_by_the_service(run: Run, services: FakeServices, file: Path) -> None:
    assert run("ordering", "import", str(file))[0] == 0
    made = parsed(run("ordering", "set-names", "start", "--adapters", "x,y", "--json"))
    assert made["revision_number"] == 2
    request = services.ordering.seen[-1]
    assert (request.destination.ordering_id, request.destination.etag) == ("start", "etag-1")
    assert run("ordering", "remove-preload", "start@1", "--adapters", "math", "--save", "other")[0] == 0
    request = services.ordering.seen[-1]
    assert (request.name, request.destination.ordering_id) == ("orderings/start@1", "other")
    assert run("ordering", "set-names", "start@1", "--adapters", "x")[0] == 2
