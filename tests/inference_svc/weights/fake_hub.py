"""A Hugging Face hub on the loopback, as much of it as downloads need, and its bad days.

Small files are answered by the hub itself, after a redirect to a cache of its own; large ones lie in a storage at
another address, to which it gives out links that are signed and run out. Source: what huggingface.co answers.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit

Files = Mapping[str, bytes]
LARGE = 1000
"""Files from this many bytes on lie in the storage."""


@dataclass(frozen=True)
class Answer:
    """Status, headers and body; `cut` bytes of the body are sent, and then the connection ends."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None


@dataclass(frozen=True)
class Request:
    """What was asked, of the hub or of its storage."""

    method: str
    path: str
    range: str
    token: str  # the Authorization header
    is_storage: bool

    @property
    def is_content(self) -> bool:
        """Asks for bytes of a large file."""
        return self.is_storage and self.method == "GET"


@dataclass
class FakeHub:
    """What the hub holds, how it behaves, and what it was asked for."""

    repositories: dict[str, dict[str, Files]]  # repository -> branch or tag -> file -> content
    accounts: dict[str, set[str]] = field(default_factory=dict)  # token -> gated and private repositories it may read
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    disabled: set[str] = field(default_factory=set)
    failing: int = 0  # a status that answers every request to the hub
    failing_headers: dict[str, str] = field(default_factory=dict)
    knows_ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # the next answers of the storage end after so many bytes
    cut_by_reset: bool = False
    stall_after: int | None = None  # larger answers of the storage stop after so many bytes, and never go on
    stalled: threading.Event = field(default_factory=threading.Event)  # one has
    ended: threading.Event = field(default_factory=threading.Event)
    link_uses: int | None = None  # a link to the storage runs out after so many requests
    corrupt: set[str] = field(default_factory=set)  # files of which the storage sends other bytes at the end
    moves: list[tuple[str, str, Files]] = field(default_factory=list)  # made after the next request for a listing
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    storage_url: str = ""
    _past: dict[str, dict[str, Files]] = field(default_factory=dict)  # repository -> commit -> files
    _links: dict[str, tuple[str, bytes, int]] = field(default_factory=dict)  # signature -> name, content, uses

    def move(self, repository: str, revision: str, files: Files) -> None:
        """A branch gets a new commit."""
        self._remember()
        self.repositories[repository][revision] = files

    def content_requests(self) -> list[Request]:
        """Those for bytes of large files."""
        return [request for request in self.requests if request.is_content]

    def answer(self, request: Request) -> Answer:
        """What the hub says."""
        if self.failing:
            return Answer(self.failing, self.failing_headers, b"{}")
        self._remember()
        parts = [unquote(part) for part in urlsplit(request.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "resolve-cache"]:
            return self._small(parts[3] + "/" + parts[4], parts[5], "/".join(parts[6:]), request)
        is_api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if is_api else parts[:2])
        if (refused := self._refusal(name, request, is_api)) is not None:
            return refused
        verb, asked, *rest = (parts[4:] if is_api else parts[2:]) or ["revision", "main"]
        found = self._commit(name, asked)
        if found is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {asked}")
        answer = self._listing(name, found) if verb == "revision" else self._file(name, found, "/".join(rest))
        if verb == "revision":
            for move in self.moves:
                self.move(*move)
            self.moves = []
        return answer

    def stored(self, request: Request) -> Answer:
        """What the storage says."""
        signature = urlsplit(request.path).query
        name, content, uses = self._links.get(signature, ("", b"", 0))
        if not name or (self.link_uses is not None and uses >= self.link_uses):
            return Answer(403, {}, b"<Error>Request has expired</Error>")
        self._links[signature] = (name, content, uses + 1)
        if name in self.corrupt:
            content = content[:-100] + content[:-101:-1]
        cut = self.cuts.pop(0) if self.cuts and request.method == "GET" else None
        return _ranged(content, request.range if self.knows_ranges else "", cut)

    def _remember(self) -> None:
        for name, revisions in self.repositories.items():
            self._past.setdefault(name, {}).update({commit(files): files for files in revisions.values()})

    def _refusal(self, name: str, request: Request, is_api: bool) -> Answer | None:
        token = request.token.removeprefix("Bearer ")
        if token and token not in self.accounts:
            return Answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}")
        if name in self.disabled:
            return Answer(403, {"X-Error-Message": "Access to this resource is disabled."}, b"{}")
        may_read = name in self.accounts.get(token, ())
        if name not in self.repositories or (name in self.private and not may_read):
            return _error(404 if token else 401, "RepoNotFound", "Repository not found")
        if name in self.gated and not may_read and not is_api:  # who may not read the files may list them
            return _error(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted")
        return None

    def _commit(self, name: str, asked: str) -> str | None:
        if asked in self._past[name]:
            return asked
        files = self.repositories[name].get(asked)
        return None if files is None else commit(files)

    def _listing(self, name: str, found: str) -> Answer:
        siblings = []
        for file, content in self._past[name][found].items():
            sibling: dict[str, object] = {"rfilename": file, "size": len(content), "blobId": _git_hash(content)}
            if len(content) >= LARGE:
                sibling["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        body = {"id": name, "modelId": name, "sha": found, "siblings": siblings, "tags": []}
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _file(self, name: str, found: str, file: str) -> Answer:
        content = self._past[name][found].get(file)
        headers = {"X-Repo-Commit": found}
        if content is None:
            answer = _error(404, "EntryNotFound", "Entry not found")
            return Answer(answer.status, {**headers, **answer.headers}, answer.body)
        if len(content) < LARGE:
            path = f"/api/resolve-cache/models/{name}/{found}/{quote(file)}"
            return Answer(307, {**headers, "Location": path, "ETag": f'"{_git_hash(content)}"'})
        signature = f"signature={len(self._links)}"
        self._links[signature] = (file, content, 0)
        return Answer(
            302,
            {
                **headers,
                "Location": f"{self.storage_url}/{sha256(content)}?{signature}",
                "X-Linked-Etag": f'"{sha256(content)}"',
                "X-Linked-Size": str(len(content)),
            },
        )

    def _small(self, name: str, found: str, file: str, request: Request) -> Answer:
        content = self._past[name][found][file]
        answer = _ranged(content, request.range if self.knows_ranges else "", None)
        headers = {**answer.headers, "X-Repo-Commit": found, "ETag": f'"{_git_hash(content)}"'}
        return Answer(answer.status, headers, answer.body)


def commit(files: Files) -> str:
    """The commit of these files."""
    return hashlib.sha1(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()


def sha256(content: bytes) -> str:
    """How the hub and its cache name a large file."""
    return hashlib.sha256(content).hexdigest()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _error(status: int, code: str, message: str) -> Answer:
    return Answer(status, {"X-Error-Code": code, "X-Error-Message": message}, b"{}")


def _ranged(content: bytes, wanted: str, cut: int | None) -> Answer:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
    if match is None:
        return Answer(200, {}, content, cut)
    start, stop = int(match[1]), int(match[2]) + 1 if match[2] else len(content)
    if start >= len(content):
        return Answer(416, {"Content-Range": f"bytes */{len(content)}"})
    part = content[start:stop]
    return Answer(206, {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}"}, part, cut)


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub and its storage answer while the block runs; `url` says where."""
    with ExitStack() as servers:
        hub.url = servers.enter_context(_listening(hub, is_storage=False))
        hub.storage_url = servers.enter_context(_listening(hub, is_storage=True))
        servers.callback(hub.ended.set)
        yield hub


@contextmanager
def _listening(hub: FakeHub, *, is_storage: bool) -> Iterator[str]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = self.headers
            request = Request(
                self.command, self.path, headers.get("Range", ""), headers.get("Authorization", ""), is_storage
            )
            with lock:
                hub.requests.append(request)
                answer = hub.stored(request) if is_storage else hub.answer(request)
            self.send_response(answer.status)
            for key, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                if is_storage and hub.stall_after is not None and len(answer.body) > hub.stall_after:
                    self.wfile.write(answer.body[: hub.stall_after])
                    hub.stalled.set()
                    hub.ended.wait()
                    return
                self.wfile.write(answer.body[: answer.cut])
            if answer.cut is not None:
                self.wfile.flush()
                if hub.cut_by_reset:  # closing with this set answers with a reset
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close() if hub.cut_by_reset else self.connection.shutdown(socket.SHUT_RDWR)

        do_HEAD = do_GET  # noqa: N815 - the name the base class looks for

        def log_message(self, format: str, *args: object) -> None:
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
