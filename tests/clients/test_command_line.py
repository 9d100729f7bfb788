"""The `loramux` command against fake services."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loramux.client import ScalingsRecord
from loramux.inference.v1 import generation_pb2
from tests.clients.command import Run, parsed
from tests.clients.fakes import LAYERS, FakeServices, fake_scalings


def test_generate_prints_the_text_alone_and_what_was_applied_on_stderr(run: Run, services: FakeServices) -> None:
    code, out, err = run("generate", "two words", "-a", "pirate=0.7", "-a", "json", "--temperature", "0", "--seed", "3")
    assert (code, out) == (0, "words two\n")
    assert "0.7×pirate + 1×json" in err
    assert "2 prompt (1 cached) + 2 new tokens" in err
    request = services.inference.requests[0]
    assert request.prompt.chat.messages[0].role == "user"
    assert (request.sampling.temperature, request.sampling.seed) == (0.0, 3)


def test_generate_for_programs_is_one_line_of_json(run: Run) -> None:
    answer = parsed(
        run("generate", "a b", "--xlora", "demo", "--raw", "--scalings", "full", "--logprobs", "1", "--json")
    )
    assert (answer["text"], answer["finish_reason"], answer["usage"]["completion_tokens"]) == ("b a", "eos", 2)
    assert answer["adapters"][0] == {
        "name": "demo",
        "kind": "xlora",
        "digest": "d1",
        "weight": None,
        "experts": ["pirate", "json", "verse"],
        "ordering": "demo@3",
    }
    assert np.shape(answer["scalings"]["values"]) == (3, LAYERS, 3)
    assert answer["logprobs"] == [-0.5, -0.5]


def test_json_is_accepted_before_the_subcommand_too(run: Run) -> None:
    assert parsed(run("--json", "model"))["quantization"] == "Q4_1"
    assert "4096 tokens, 4000 free; 25 % of prompt tokens found cached; 2 preemptions" in run("model")[1]


def test_a_prompt_of_a_dash_is_read_from_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert run("generate", "-", "--raw")[1] == "pipe a from\n"


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "hi", "--base", "--xlora", "demo"),
        ("generate", "hi", "-a", "pirate=much"),
        ("generate", "hi", "-a", "pirate=inf"),
        ("generate", "hi", "-a", "=1"),
        ("generate",),
        ("generate", "hi", "--scalings", "half"),
        ("adapters", "activate"),
        ("scalings", "plot"),
        ("scalings", "plot", "--prompt", "hi"),
        ("ordering", "create", "x", "--label", "novalue"),
        ("nonsense",),
    ],
)
def test_wrong_usage_exits_with_2_and_says_why(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "rror" in err
    assert parsed(run(*words, "--json"), 2)["error"]["reason"] == "USAGE"


def test_a_refusal_is_one_line_with_its_reason_and_exits_with_1(run: Run) -> None:
    code, out, err = run("generate", "hi", "-a", "nobody")
    assert (code, out, err) == (1, "", "error: no adapter 'nobody' is loaded [ADAPTER_NOT_FOUND]\n")


def test_violations_are_a_table(run: Run) -> None:
    code, _, err = run("generate", "hi", "-a", "wrong")
    assert code == 1
    lines = err.splitlines()
    assert lines[0] == "error: 2 fields are wrong [INVALID_REQUEST]"
    assert [line.split()[0] for line in lines[2:]] == ["adapters[0].weight", "sampling.top_p"]


def test_refusals_are_json_for_programs(run: Run) -> None:
    error = parsed(run("generate", "hi", "-a", "wrong", "--json"), 1)["error"]
    assert (error["code"], error["reason"]) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert error["violations"][1]["field"] == "sampling.top_p"


def test_a_service_that_is_away_is_named(run: Run) -> None:
    code, _, err = run("model", "--address", "127.0.0.1:1")
    assert code == 1
    assert "no service answers at 127.0.0.1:1" in err


def test_a_missing_file_is_an_error_not_a_traceback(run: Run) -> None:
    code, _, err = run("ordering", "import", "nowhere.json")
    assert code == 1
    assert "nowhere.json" in err
    assert "Traceback" not in err


def test_adapters_are_loaded_activated_listed_and_unloaded(run: Run) -> None:
    for name in ("a", "b", "c"):
        assert parsed(run("adapters", "load", name, f"/roots/{name}", "--json"))["name"] == name
    assert parsed(run("adapters", "activate", "a=0.5", "b", "--json")) == {
        "selection": "loras",
        "adapters": [{"name": "a", "weight": 0.5}, {"name": "b", "weight": 1.0}],
        "generation": 1,
    }
    listed = run("adapters", "list")[1]
    assert "active: 0.5×a + 1×b" in listed
    assert [line.split()[0] for line in listed.splitlines()[1:4]] == ["a", "b", "c"]
    assert parsed(run("adapters", "list", "--json"))["active"]["generation"] == 1
    assert "/roots/c" in run("adapters", "get", "c")[1]
    assert "following demo@live: demo@1 is applied, demo@2 was seen; unfit" in listed
    assert parsed(run("adapters", "replace", "c", "/roots/d", "--pin", "--json"))["pinned"]
    assert run("adapters", "replace", "c", "/roots/d", "--expect", "other")[0] == 1
    assert run("adapters", "replace", "nobody", "/roots/d")[0] == 1
    assert not parsed(run("adapters", "unpin", "c", "--json"))["pinned"]
    assert parsed(run("adapters", "pin", "c", "--json"))["pinned"]
    lines = [json.loads(line) for line in run("adapters", "watch", "--json")[1].splitlines()]
    assert [line.get("kind") for line in lines] == [None, "evicted", "activated"]
    assert "evicted    gone 0123" in run("adapters", "watch", "--resume", "s.4")[1]
    assert run("adapters", "unload", "c")[0] == 0
    assert run("adapters", "get", "c")[0] == 1
    assert "base model" in run("adapters", "activate", "--base")[1]
    applied = run("adapters", "apply", "demo")[1]
    assert "demo (X-LoRA)" in applied
    assert "warning" in applied
    assert "its classifier may choose otherwise" in applied


def test_tokenizing_and_detokenizing(run: Run) -> None:
    assert run("tokenize", "a bb")[1].split() == ["101", "102"]
    assert parsed(run("tokenize", "a", "--chat", "--json")) == {"token_ids": [101], "rendered": "<user>a"}
    assert parsed(run("detokenize", "7", "8", "--json")) == {"text": " t7 t8"}
    assert run("detokenize", "7")[1] == " t7\n"


def test_an_ordering_lives_from_create_to_delete(run: Run) -> None:
    assert run("ordering", "create", "demo", "--base-model-id", "m", "--order", "a, b,,", "--label", "k=v=w")[0] == 0
    read = parsed(run("ordering", "show", "demo", "--json"))
    assert read["document"] == {"base_model_id": "m", "order": ["a", "b"], "layers": None, "preload_adapters": None}
    assert read["labels"] == {"k": "v=w"}
    assert parsed(run("ordering", "update", "demo", "--order", "b", "--json"))["document"]["base_model_id"] == "m"
    assert run("ordering", "update", "demo", "--description", "x", "--etag", "etag-1")[0] == 1
    assert [entry["revision_number"] for entry in parsed(run("ordering", "history", "demo", "--json"))] == [2, 1]
    assert "demo" in run("ordering", "list")[1]
    assert run("ordering", "delete", "demo")[1] == "deleted demo\n"
    assert run("ordering", "show", "demo")[0] == 1


def test_an_ordering_file_is_exported_as_it_was_imported(run: Run, tmp_path: Path) -> None:
    content = '{"order":["x"],\n  "base_model_id":"m"}'
    (tmp_path / "demo.json").write_text(content)
    assert run("ordering", "import", "demo.json", "--kind", "xlora")[0] == 0
    assert run("ordering", "import", "demo.json")[0] == 1
    assert run("ordering", "import", "demo.json", "--allow-existing")[0] == 0
    assert run("ordering", "export", "demo")[1] == content
    assert run("ordering", "export", "demo@1", "-o", "out.json")[0] == 0
    assert (tmp_path / "out.json").read_text() == content
    assert parsed(run("ordering", "export", "demo", "--json"))["document"]["order"] == ["x"]


def test_generate_reads_a_local_config_here_and_leaves_other_models_to_the_service(
    run: Run, services: FakeServices, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "m.gguf").touch()
    words = ("ordering", "generate", "--targets", "q_proj,v_proj", "--adapters", "a,b")
    assert run(*words, "--model", "model", "-o", "made.json")[0] == 0
    request = services.ordering.seen[-1]
    assert (request.model.config_json, request.base_model_id) == ('{"model_type": "llama"}', "model")
    assert json.loads((tmp_path / "made.json").read_text())["order"] == ["a", "b"]
    assert json.loads(run(*words, "--model", "m.gguf")[1])["order"] == ["a", "b"]
    assert services.ordering.seen[-1].model.path == str(tmp_path / "m.gguf")
    run(*words, "--model", "org/model")
    assert services.ordering.seen[-1].model.hub_id == "org/model"


def test_a_file_that_is_not_there_is_said_to_be_a_file(run: Run, tmp_path: Path) -> None:
    code, _, err = run("ordering", "validate", "missing.json")
    assert code == 1
    assert "there is no file missing.json" in err


def test_validate_shows_every_problem_and_exits_with_1(run: Run, services: FakeServices, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"order": []}')
    code, out, _ = run("ordering", "validate", "bad.json", "--quantized-architecture", "llama")
    assert code == 1
    assert "BASE_MODEL_ID_MISSING" in out
    assert "ORDER_EMPTY" in out
    assert "Add base_model_id." in out  # what to do stands below what is wrong
    assert "math/adapter_config.json" in out
    assert [problem["severity"] for problem in parsed(run("ordering", "validate", "bad.json", "--json"), 1)["problems"]]
    assert run("ordering", "validate", "stored")[:2] == (0, "valid\n")
    assert run("ordering", "validate", "stored", "--adapter-model-id", "adapters")[0] == 0
    assert (services.ordering.seen[-1].check_adapters, services.ordering.seen[-1].adapter_model_id) == (
        True,
        "adapters",
    )


def test_set_names_and_add_preload_make_new_revisions_of_a_stored_ordering(
    run: Run, services: FakeServices, tmp_path: Path
) -> None:
    (tmp_path / "demo.json").write_text('{"order": ["x"], "base_model_id": "m"}')
    run("ordering", "import", "demo.json")
    changed = parsed(run("ordering", "set-names", "demo", "--adapters", "b,a", "--json"))
    assert (changed["document"]["order"], changed["revision_number"]) == (["b", "a"], 2)
    asked = services.ordering.seen[-1]
    assert (asked.destination.ordering_id, asked.destination.etag) == ("demo", "etag-1")
    run("ordering", "import", "demo.json", "--allow-existing")
    command = ("ordering", "add-preload", "demo", "--adapters", "p,q", "--adapter-model-id", "org/place")
    preload = parsed(run(*command, "--json"))["document"]["preload_adapters"]
    assert preload == [{"name": name, "adapter_model_id": "org/place"} for name in ("p", "q")]
    assert run("ordering", "set-names", "demo@1", "--adapters", "z")[0] == 2


def test_scalings_are_saved_plotted_and_exported(run: Run, tmp_path: Path) -> None:
    code, out, err = run("generate", "one two", "--xlora", "demo", "--raw", "--scalings-out", "s.npz")
    assert (code, out) == (0, "two one\n")
    assert "mean over 5 layers" in err
    record = ScalingsRecord.load(tmp_path / "s.npz")
    np.testing.assert_array_equal(record.values, fake_scalings(3, LAYERS))
    code, out, _ = run("scalings", "plot", "s.npz", "-o", "s.png")
    assert code == 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert "pirate" in out
    summary = parsed(run("scalings", "plot", "--prompt", "a b", "--xlora", "demo", "--json"))
    assert summary["mean"]["verse"] == pytest.approx(float(fake_scalings(3, LAYERS)[..., 2].mean()))
    lines = run("scalings", "export", "s.npz", "--csv")[1].splitlines()
    assert lines[0] == "position,token_id,token_text,part,layer,pirate,json,verse"
    assert len(lines) == 1 + 3 * LAYERS
    assert lines[-1] == "2,103, t103,answer,4,42,43,44"
    assert parsed(run("scalings", "export", "s.npz", "--json"))["prompt_tokens"] == 2
    assert run("scalings", "export", "s.npz", "--csv", "-o", "s.csv")[0] == 0
    assert (tmp_path / "s.csv").read_text().splitlines() == lines
    assert run("scalings", "export", "s.npz", "--npy", "-o", "s.npy")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), fake_scalings(3, LAYERS))
    for words in ((), ("--npy",), ("--npy", "--csv", "-o", "x"), ("--csv", "--json")):
        assert run("scalings", "export", "s.npz", *words)[0] == 2, words


def test_changes_of_a_mixture_are_options_of_generate(run: Run, services: FakeServices) -> None:
    words = ("--granularity", "frozen-after:4", "--top-k-lora", "2", "--softmax-temperature", "0.5")
    more = ("--global-scaling-weight", "0", "--scalings", "mean", "--scalings-type", "float16")
    assert run("generate", "one two", "--xlora", "demo", *words, *more)[0] == 0
    sent = services.inference.requests[-1]
    assert sent.xlora.granularity.frozen_after == 4
    assert (sent.xlora.top_k_lora, sent.xlora.softmax_temperature) == (2, 0.5)
    assert sent.xlora.HasField("global_scaling_weight")
    assert sent.response.scalings_type == generation_pb2.SCALINGS_TYPE_FLOAT16
    assert run("generate", "one two", "--xlora", "demo")[0] == 0
    assert not services.inference.requests[-1].HasField("xlora")
    code, _, err = run("generate", "one two", "--xlora", "demo", "--granularity", "sometimes")
    assert code == 1
    assert "every-token, frozen-after:K" in err


def test_a_picture_of_an_unknown_format_is_an_error(run: Run, tmp_path: Path) -> None:
    run("generate", "one two", "--xlora", "demo", "--scalings-out", "s.npz")
    code, _, err = run("scalings", "plot", "s.npz", "-o", "s.docx")
    assert code == 1
    assert "docx" in err


def test_without_matplotlib_the_command_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("generate", "one two", "--xlora", "demo", "--scalings-out", "s.npz")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    code, _, err = run("scalings", "plot", "s.npz", "-o", "s.png")
    assert code == 1
    assert "pip install 'loramux[plot]'" in err
    assert run("scalings", "plot", "s.npz")[0] == 0


def test_chat_keeps_the_history_and_obeys_its_commands(
    run: Run, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    lines = ["first turn", "/adapter pirate=0.5", "second", "/reset", "/adapter xlora demo", "third", "/adapter base"]
    lines += ["fourth", "/adapter x=y", "/adapter nobody", "fifth", "/what", "/adapter", "sixth", "/quit", "never"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    code, out, err = run("chat", "--system", "be kind")
    assert code == 0
    requests = services.inference.requests
    said = [[(message.role, message.content) for message in request.prompt.chat.messages] for request in requests]
    assert said[0] == [("system", "be kind"), ("user", "first turn")]
    assert said[1] == [*said[0], ("assistant", "turn first kind be"), ("user", "second")]
    assert said[2] == [("system", "be kind"), ("user", "third")]
    # A message that was refused is forgotten.
    assert said[5][-1] == ("user", "sixth")
    assert ("user", "fifth") not in said[5]
    forms = [request.adapters.WhichOneof("selection") for request in requests]
    assert forms == ["active", "loras", "xlora", "base", "loras", "active"]
    assert "ADAPTER_NOT_FOUND" in err
    assert "no command /what" in err
    assert out.startswith("turn first kind be\n")


def test_chat_for_programs_answers_a_line_with_a_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nagain\n"))
    code, out, err = run("chat", "--json")
    assert (code, err) == (0, "")
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["hello", "again hello hello"]


def test_the_version_is_that_of_the_package(run: Run) -> None:
    from importlib.metadata import version

    assert run("--version")[1] == f"loramux {version('loramux')}\n"


@pytest.mark.parametrize(
    "group", [(), ("ordering",), ("adapters",), ("scalings",), ("up",), ("generate",), ("chat",), ("model",)]
)
def test_help_exists_for_every_command(run: Run, group: tuple[str, ...]) -> None:
    code, out, _ = run(*group, "--help")
    assert code == 0
    assert "--help" in out
