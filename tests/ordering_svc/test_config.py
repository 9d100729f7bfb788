"""Settings: flags before variables before defaults, and nothing open by accident."""

from __future__ import annotations

from pathlib import Path

import pytest

from ordering_svc.config import is_loopback, load_config
from ordering_svc.errors import CannotStart


def test_flags_win_over_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORAMUX_ORDERING_LISTEN", "127.0.0.1:7")
    monkeypatch.setenv("LORAMUX_ORDERING_MODEL_ROOTS", f"{tmp_path},{tmp_path}")
    config = load_config({"listen": "127.0.0.1:8"})
    assert config.listen == "127.0.0.1:8"
    assert config.model_roots == (tmp_path, tmp_path)
    assert load_config({}).listen == "127.0.0.1:7"


def test_a_variable_that_names_no_setting_is_refused_but_not_the_clients() -> None:
    with pytest.raises(CannotStart, match="LORAMUX_ORDERING_LISTN"):
        load_config({}, {"LORAMUX_ORDERING_LISTN": "x"})
    load_config({}, {"LORAMUX_ORDERING_ADDRESS": "x"})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/tmp/s", "unix-abstract:s"])
def test_local_addresses_need_no_consent(address: str) -> None:
    assert is_loopback(address)
    assert load_config({"listen": address}).listen == address


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "192.168.1.1:1", "example.org:1"])
def test_open_addresses_need_consent(address: str) -> None:
    with pytest.raises(CannotStart, match="--insecure"):
        load_config({"listen": address})
    assert load_config({"listen": address, "insecure": True}).listen == address


@pytest.mark.parametrize("address", ["", "host", ":1", "h:x", "h:70000", "unix:", "unix:" + "x" * 200])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(CannotStart):
        load_config({"listen": address, "insecure": True})


def test_a_password_is_not_shown() -> None:
    config = load_config({"database_url": "postgresql://me:secret@host/db"})
    assert "secret" not in repr(config)
    assert config.database().password == "secret"
