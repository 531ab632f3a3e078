"""A model hub on this machine that speaks the HTTP API of the Hugging Face hub, as far as downloads need it.

Routes: ``/api/models/ID[/revision/REVISION]``, ``/api/models/ID/tree/REVISION``, ``/ID/resolve/REVISION/FILE``.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<revision>[^/]+))?")
_FILE = re.compile(r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


class FakeHub:
    """Repositories that are directories.

    Attributes:
        url: what ``HF_ENDPOINT`` must be.
        repositories: directory by id; all have the branch ``main`` at :data:`COMMIT`.
        branches: further branches, at the same commit.
        gated: ids whose files are refused.
        is_down: every answer is an error of the server.
        requests: method and path of each request.
        tokens: the values of ``Authorization`` that came.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, Path] = {}
        self.branches: set[str] = set()
        self.gated: set[str] = set()
        self.is_down = False
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str] = set()


@contextlib.contextmanager
def running() -> Iterator[FakeHub]:
    """A hub that answers while the block runs."""
    server = _Server(("127.0.0.1", 0), _Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")
    server.hub = hub
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    hub: FakeHub


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    @property
    def hub(self) -> FakeHub:
        return self.server.hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path))
        if self.headers.get("Authorization"):
            self.hub.tokens.add(self.headers["Authorization"])
        if self.hub.is_down:
            self._refuse(500, "")
        elif match := _API.fullmatch(path):
            self._api(**match.groupdict())
        elif match := _FILE.fullmatch(path):
            self._file(**match.groupdict())
        else:
            self._refuse(404, "")

    def _directory(self, name: str, revision: str | None) -> Path | None:
        directory = self.hub.repositories.get(name)
        if directory is None:
            self._refuse(404, "RepoNotFound")
        elif revision not in (None, "main", COMMIT, *self.hub.branches):
            self._refuse(404, "RevisionNotFound")
        else:
            return directory
        return None

    def _api(self, id: str, what: str | None, revision: str | None) -> None:  # noqa: A002
        directory = self._directory(id, revision)
        if directory is None:
            return
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        names = [path.relative_to(directory).as_posix() for path in files]
        if what == "tree":
            body: object = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _digest(path)[:40]}
                for name, path in zip(names, files, strict=True)
            ]
        else:
            body = {"id": id, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, id: str, revision: str, file: str) -> None:  # noqa: A002
        directory = self._directory(id, revision)
        if directory is None:
            return
        if id in self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif not (directory / file).is_file():
            self._refuse(404, "EntryNotFound")
        else:
            path = directory / file
            self._send(200, path.read_bytes(), {"ETag": f'"{_digest(path)}"', "X-Repo-Commit": COMMIT})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
