"""A Hugging Face hub on the loopback, as much of it as downloads need."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Repository = Mapping[str, Mapping[str, bytes]]  # revision -> file -> content


@dataclass
class FakeHub:
    """What the hub holds, and what it was asked for."""

    repositories: dict[str, Repository]
    gated: frozenset[str] = frozenset()
    failing: bool = False
    requests: list[str] = field(default_factory=list)  # "GET /path"
    tokens: set[str] = field(default_factory=set)
    url: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        if self.failing:
            return 500, {}, b"out of order"
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        is_api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if is_api else parts[:2])
        if name not in self.repositories:
            return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"
        if name in self.gated:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b"{}"
        verb, asked, *rest = (parts[4:] if is_api else parts[2:]) or ["revision", "main"]
        revisions = self.repositories[name]
        known = {
            **{commit(revision): revision for revision in revisions},
            **{revision: revision for revision in revisions},
        }
        if asked not in known:
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, b"{}"
        revision = known[asked]
        files = revisions[revision]
        if verb == "revision":
            siblings = [{"rfilename": file} for file in files]
            return _json({"id": name, "modelId": name, "sha": commit(revision), "siblings": siblings, "tags": []})
        if verb == "tree":
            entries = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()
            ]
            return _json(entries)
        headers = {"X-Repo-Commit": commit(revision)}
        file = "/".join(rest)
        if file not in files:
            return 404, {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b"{}"
        headers["ETag"] = f'"{hashlib.sha1(files[file]).hexdigest()}"'
        return 200, headers, files[file]


def commit(revision: str) -> str:
    """The commit that a revision of any fake repository stands for."""
    return hashlib.sha1(revision.encode()).hexdigest()


def _json(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub answers while the block runs; `url` says where."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            hub.tokens.add(self.headers.get("Authorization", ""))
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the name the base class looks for

        def log_message(self, format: str, *args: object) -> None:
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
