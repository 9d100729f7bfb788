"""`loramux ordering ...`: history, removal, metadata and watching."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

from loramux.cli.ordering_tables import layer_lines
from loramux.client import Client, OrderingDocument
from tests.clients.command import Run, parsed
from tests.clients.fakes import FakeServices

REQUEST_ID = "7d444840-9dc0-11d1-b245-5ffdce74fad2"


@pytest.fixture
def demo(run: Run) -> Run:
    """The command, and a service that holds `demo` with two revisions, the first tagged `prod`."""
    create = ("ordering", "create", "demo", "--base-model-id", "m", "--order", "a", "--label", "team=nlp")
    assert run(*create, "--description", "why")[0] == 0
    assert run("ordering", "tag", "demo", "prod")[0] == 0
    assert run("ordering", "update", "demo", "--order", "a,b")[0] == 0
    return run


def test_history_shows_tags_and_how_each_revision_was_made(demo: Run) -> None:
    assert demo("ordering", "rollback", "demo", "prod")[0] == 0
    lines = demo("ordering", "history", "demo")[1].splitlines()
    assert [line.split()[0] for line in lines] == ["Revision", "demo@3", "demo@2", "demo@1"]
    assert "rolled back to demo@1" in lines[1]
    assert "prod" in lines[3]
    assert "prod" not in lines[1]
    assert [entry["tags"] for entry in parsed(demo("ordering", "history", "demo", "--json"))] == [[], [], ["prod"]]


def test_show_has_document_metadata_tags_and_provenance(demo: Run) -> None:
    shown = demo("ordering", "show", "demo@prod")[1]
    fields = dict(line.strip().split(None, 1) for line in shown.splitlines())
    assert (fields["revision"], fields["tags"], fields["order"]) == ("1 (r1)", "prod", "a")
    assert (fields["labels"], fields["description"]) == ("team=nlp", "why")
    assert fields["made"].startswith("written")
    read = parsed(demo("ordering", "show", "demo", "--json"))
    assert (read["provenance"]["method"], read["delete_time"], read["tags"]) == ("written", None, [])


def test_layers_are_told_by_kind_of_module() -> None:
    layers = {f"model.layers.{index}.self_attn.{name}": 2 * index for index in range(12) for name in ("q_proj", "v")}
    lines = layer_lines({**layers, "lm_head": 24})
    assert lines == [
        "25",
        "  model.layers.*.self_attn.q_proj  12 x, rows 0 to 22",
        "  model.layers.*.self_attn.v       12 x, rows 0 to 22",
        "  lm_head                          row 24",
    ]


def test_a_diff_shows_before_and_after_and_tells_programs_by_its_exit_code(demo: Run) -> None:
    code, out, _ = demo("ordering", "diff", "demo@prod")
    assert (code, out.splitlines()) == (0, ["--- demo@prod", "+++ demo", "order[1]", '  + "b"'])
    assert demo("ordering", "diff", "demo@1", "demo@2", "--exit-code")[0] == 1
    same = demo("ordering", "diff", "demo@2", "demo", "--exit-code")
    assert same[:2] == (0, "no differences: the files are equal byte for byte\n")
    found = parsed(demo("ordering", "diff", "demo@1", "demo@2", "--json"))
    assert found["differences"] == [{"field": "order[1]", "before": None, "after": '"b"'}]


def test_a_long_diff_is_told_in_the_words_of_the_service_unless_all_is_asked_for(run: Run) -> None:
    for name, order in (("a", "x"), ("b", "y")):
        run("ordering", "create", name, "--base-model-id", "m", "--order", ",".join(f"{order}{n}" for n in range(13)))
    short, long = run("ordering", "diff", "a", "b")[1], run("ordering", "diff", "a", "b", "--all")[1]
    assert 'order[0]: "x0" -> "y0"' in short
    assert "13 differences; --all shows each" in short
    assert long.count("  - ") == long.count("  + ") == 13


def test_tags_move_and_go(demo: Run) -> None:
    assert demo("ordering", "tag", "demo", "prod")[1] == "demo@prod is demo@2 (r2)\n"
    assert parsed(demo("ordering", "tag", "demo@1", "old", "--json"))["tags"] == ["old"]
    assert demo("ordering", "untag", "demo", "old")[1] == "demo has no tag old any more\n"
    assert demo("ordering", "untag", "demo", "old")[0] == 1


def test_labels_are_added_and_removed_one_by_one(demo: Run, services: FakeServices) -> None:
    update = ("ordering", "update", "demo")
    assert parsed(demo(*update, "--label", "stage=try", "--json"))["labels"] == {"team": "nlp", "stage": "try"}
    assert services.ordering.seen[-1].etag == "etag-2"
    assert parsed(demo(*update, "--remove-label", "team", "--json"))["labels"] == {"stage": "try"}
    code, _, err = demo(*update, "--remove-label", "team")
    assert code == 2
    assert "there are: stage" in " ".join(err.split())
    assert demo(*update)[0] == 2


def test_what_is_only_validated_is_said_and_ids_are_passed_on(demo: Run, services: FakeServices) -> None:
    code, _, err = demo("ordering", "tag", "demo", "x", "--validate-only", "--request-id", REQUEST_ID)
    assert (code, err) == (0, "validated only: nothing was written\n")
    assert (services.ordering.seen[-1].request_id, services.ordering.seen[-1].validate_only) == (REQUEST_ID, True)


def test_a_deleted_ordering_is_listed_on_demand_and_comes_back(demo: Run) -> None:
    code, out, err = demo("ordering", "delete", "demo")
    assert (code, out) == (0, "deleted demo\n")
    assert "loramux ordering undelete demo" in err
    assert demo("ordering", "list")[1] == "no orderings\n"
    assert "Deleted (UTC)" in demo("ordering", "list", "--show-deleted")[1]
    assert "deleted" in demo("ordering", "show", "demo", "--show-deleted")[1]
    code, _, err = demo("ordering", "show", "demo")
    assert code == 1
    assert "--show-deleted" in err
    assert parsed(demo("ordering", "undelete", "demo", "--json"))["delete_time"] is None


def test_purging_needs_a_yes(demo: Run, services: FakeServices, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = demo("ordering", "purge", "demo", "--yes")
    assert code == 1
    assert "delete it first" in err
    demo("ordering", "delete", "demo")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # no terminal
    code, _, err = demo("ordering", "purge", "demo")
    assert code == 2
    assert "--yes" in err
    assert "orderings/demo" in services.ordering.stored
    assert parsed(demo("ordering", "purge", "demo", "--yes", "--json")) == {"purged_revisions": 2}
    assert services.ordering.stored == {}


@pytest.mark.parametrize(("answer", "code", "left"), [(b"y\n", 0, 0), (b"n\n", 1, 1)])
def test_purging_asks_on_a_terminal(
    services: FakeServices, client: Client, answer: bytes, code: int, left: int
) -> None:
    client.orderings.create("demo", OrderingDocument(base_model_id="m"))
    client.orderings.delete("demo")
    terminal, inside = pty.openpty()
    process = start(services, ["purge", "demo"], stdin=inside)
    os.write(terminal, answer)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Remove demo for good, with 1 revision?" in err
    assert len(services.ordering.stored) == left


def test_a_stale_etag_and_a_service_that_is_away_are_told_with_what_to_do(demo: Run, services: FakeServices) -> None:
    code, _, err = demo("ordering", "delete", "demo", "--etag", "etag-0")
    assert code == 1
    assert err.splitlines()[0] == "error: the etag is stale [ETAG_MISMATCH]"
    assert "loramux ordering show ID" in err
    error = parsed(demo("ordering", "delete", "demo", "--etag", "etag-0", "--json"), 1)["error"]
    assert error["metadata"] == {"current_etag": "etag-2"}
    for etag in ("1-97", '"1-97"'):
        demo("ordering", "delete", "demo", "--etag", etag)
        assert services.ordering.seen[-1].etag == '"1-97"'
    code, _, err = demo("ordering", "list", "--ordering-address", "127.0.0.1:1")
    assert code == 1
    assert "loramux up" in err


# A suite in the background of a shell inherits an ignored SIGINT; a terminal's programs do not. It is set inside the
# program, because Python code between fork and exec is not safe in a process where grpc runs threads.
PROGRAM = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
PROGRAM += "from loramux.cli.__main__ import main; sys.exit(main())"


def start(services: FakeServices, words: Sequence[str], stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """`loramux ordering ...` as a process."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "ordering", *words, "--ordering-address", services.address],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_watching_prints_lines_until_it_is_interrupted(services: FakeServices, client: Client) -> None:
    client.orderings.create("demo", OrderingDocument(base_model_id="m"))
    services.ordering.losses = [1]
    process = start(services, ["watch", "demo", "--after", "0"])
    assert process.stdout is not None
    assert process.stdout.readline() == b"     1  2023-11-14 22:13:21  created   demo@1 r1\n"
    client.orderings.tag("demo", "prod")
    assert process.stdout.readline().split()[3:] == [b"tagged", b"demo@1", b"prod"]
    client.orderings.untag("demo", "prod")
    assert process.stdout.readline().split()[3:] == [b"untagged", b"demo", b"prod"]
    client.orderings.delete("demo")
    assert process.stdout.readline().split()[3:] == [b"deleted", b"demo@1"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"")
    assert b"watching after change 0" in err
    assert b"draining; waiting for it to come back" in err
    assert b"loramux ordering watch --after 4" in err
    assert b"Traceback" not in err


def test_watching_for_programs_is_a_line_of_json_a_change_and_ends_with_its_reader(
    services: FakeServices, client: Client
) -> None:
    for number in range(3):
        client.orderings.create(f"o{number}", OrderingDocument(base_model_id="m"))
    process = start(services, ["watch", "--after", "0", "--json"])
    assert process.stdout is not None
    assert process.stderr is not None
    changes = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert [(change["sequence"], change["type"], change["id"]) for change in changes] == [
        (1, "created", "o0"),
        (2, "created", "o1"),
        (3, "created", "o2"),
    ]
    process.stdout.close()
    client.orderings.delete("o0")
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize(
    "command",
    [
        *("create", "list", "show", "history", "diff", "update", "rollback", "tag", "untag"),
        *("watch", "delete", "undelete", "purge", "import", "export"),
    ],
)
def test_every_command_has_help_with_an_example(run: Run, command: str) -> None:
    code, out, _ = run("ordering", command, "--help")
    assert code == 0
    assert f"Example: loramux ordering {command}" in out
    assert "--json" in out
