"""Configs are read from folders, GGUF files, a hub on loopback, and text; and only from allowed places."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ordering_svc.domain.architectures import ModelStructure
from ordering_svc.errors import HubUnavailable, ModelConfigInvalid, ModelNotFound, PathNotAllowed
from ordering_svc.model_config.hub import fetch_config
from ordering_svc.model_config.reader import HubModel, LocalModel, ModelReader, ModelText

CONFIG = b'{"model_type": "llama", "num_hidden_layers": 2}'
TINY = ModelStructure("llama", 2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny" / "config.json").write_bytes(CONFIG)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_bytes(CONFIG)
    return folder


def test_a_folder_is_read_by_relative_and_absolute_path(root: Path) -> None:
    reader = ModelReader([root])
    for path in ("tiny", str(root / "tiny"), "./tiny/../tiny"):
        model = reader.read(LocalModel(path))
        assert (model.structure, model.model_id) == (TINY, path)
        assert model.config_digest == hashlib.sha256(CONFIG).hexdigest()


def test_the_real_gguf_file_is_read(smollm2_gguf: Path) -> None:
    resolved = smollm2_gguf.resolve()
    model = ModelReader([resolved.parent]).read(LocalModel(resolved.name))
    assert model.structure == ModelStructure("llama", 30)


def test_nothing_outside_the_roots_is_read_or_told_about(root: Path) -> None:
    (root / "link").symlink_to(root.parent / "outside")
    (root / "inner").mkdir()
    (root / "inner" / "config.json").symlink_to(root.parent / "outside" / "config.json")
    for path in ("../outside", str(root.parent / "outside"), "link", "inner", "/nowhere/at/all", "/etc/passwd"):
        with pytest.raises(PathNotAllowed):
            ModelReader([root]).read(LocalModel(path))
    with pytest.raises(PathNotAllowed, match="--model-root"):
        ModelReader([]).read(LocalModel("tiny"))


def test_a_config_that_is_missing_or_wrong_is_named(root: Path) -> None:
    (root / "empty").mkdir()
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        ModelReader([root]).read(LocalModel("empty"))
    for content in (b"{", b"[]", b'{"model_type": 1}', b'{"model_type": "llama"}', b"[" * 100_000, b" " * (2**20 + 1)):
        (root / "empty" / "config.json").write_bytes(content)
        with pytest.raises(ModelConfigInvalid):
            ModelReader([root]).read(LocalModel("empty"))
    with pytest.raises(ModelConfigInvalid, match="num_hidden_layers"):
        ModelReader([]).read(ModelText('{"model_type": "llama", "num_hidden_layers": true}'))


class Hub(BaseHTTPRequestHandler):
    """Answers like the hub: one model, and one that is not there."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        is_there = "/org/tiny/resolve/" in self.path
        body = CONFIG if is_there else b""
        self.send_response(200 if is_there or self.path == "/" else 404)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", '"abc"')
        if not is_there:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's output is its own."""


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_hub_id_is_read_from_the_hub_then_from_its_cache(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for endpoint in (hub, "http://127.0.0.1:1"):
        model = ModelReader([], endpoint).read(HubModel("org/tiny"))
        assert (model.structure, model.model_id) == (TINY, "org/tiny")
    with pytest.raises(ModelNotFound, match="org/none"):
        fetch_config("org/none", None, hub)
    with pytest.raises(HubUnavailable, match="org/other@v1"):
        fetch_config("org/other", "v1", "http://127.0.0.1:1")
