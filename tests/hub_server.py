"""A server that answers huggingface_hub as the Hugging Face Hub does, for the models in a folder of this machine."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

MODEL = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+?)(/(?P<what>revision|tree)/(?P<revision>[^/]+))?")
FILE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


class HubServer:
    """A hub of the models at `root`/OWNER/NAME; each is one commit, on main, whose hash is that of its files.

    Attributes:
      url: the address of the server.
      fetched: the files whose content was asked for, as OWNER/NAME/FILE.
      gated: the repositories whose files need a token.
      broken: the status with which everything is answered; None answers as the Hub does.
    """

    def __init__(self, root: Path):
        self.root, self.fetched, self.gated, self.broken = root, [], set(), None
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Ends the server; its address refuses connections from then on."""
        self._server.shutdown()
        self._server.server_close()

    def files(self, repository: str) -> dict[str, Path]:
        """The files of a repository by their names in it; {} for a repository that is not there."""
        folder = self.root / repository
        return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def commit(self, repository: str) -> str:
        """The hash of a repository's only commit."""
        named = [f"{name} {_hash(path)}" for name, path in self.files(repository).items()]
        return hashlib.sha1("\n".join(named).encode()).hexdigest()


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Writes no log."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = urlsplit(self.path).path
        found = FILE.fullmatch(path) or MODEL.fullmatch(path)
        files = self.hub.files(found["repository"]) if found else {}
        commit = self.hub.commit(found["repository"]) if files else ""
        if self.hub.broken is not None:
            return self._send(self.hub.broken, b"", {})
        if not files:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if unquote(found["revision"] or "main") not in ("main", commit):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if found.re is MODEL:
            return self._send(200, json.dumps(self._described(found, files, commit)).encode(), {})
        if found["repository"] in self.hub.gated and "Authorization" not in self.headers:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        if (file := files.get(unquote(found["file"]))) is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if with_body:
            self.hub.fetched.append(f"{found['repository']}/{unquote(found['file'])}")
        headers = {"ETag": f'"{_hash(file)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        self._send(200, file.read_bytes(), headers, with_body=with_body)

    def _described(self, found: re.Match, files: dict[str, Path], commit: str) -> Any:
        """What the API says of a repository, or of its files."""
        sizes = {name: path.stat().st_size for name, path in files.items()}
        if found["what"] == "tree":
            return [{"type": "file", "path": name, "size": sizes[name], "oid": _hash(files[name])} for name in files]
        blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        siblings = [{"rfilename": name} | ({"size": sizes[name]} if blobs else {}) for name in files]
        return {
            "_id": "0",
            "id": found["repository"],
            "sha": commit,
            "siblings": siblings,
            "private": False,
            "tags": [],
        }

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(body)
