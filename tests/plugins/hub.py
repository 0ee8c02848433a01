"""A hub of models that is a small HTTP server.

It keeps of the real one: its routes for a revision and for the files of a commit, ETags, and what it answers where
there is no such model. Everything is downloaded by huggingface_hub itself.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

FIRST, SECOND = "1" * 40, "2" * 40


class Hub(ThreadingHTTPServer):
    """One model, `org/model`, whose `main` moves."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.main = FIRST
        self.files = {
            "config.json": b'{"model_type": "llama"}',
            "model.safetensors": b"weights" * 1000,
            "consolidated.safetensors": b"weights" * 1000,
            "onnx/config.json": b"{}",
            "modeling_own.py": b"raise SystemExit('code of others')",
            "README.md": b"# a model",
        }
        self.requests: list[str] = []
        self.cut = ""
        """A file that breaks off when it is fetched."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        match path.strip("/").split("/"):
            case ["api", "models", "org", "model", "revision", revision] if revision in ("main", FIRST, SECOND):
                self._send(json.dumps(self._info(revision)).encode(), {})
            case ["api", "models", "org", "model", "tree", *_]:
                self._send(json.dumps(self._tree()).encode(), {})
            case ["org", "model", "resolve", commit, *name] if "/".join(name) in self.server.files:
                self._file(commit, "/".join(name))
            case _:
                self._send(b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, 404)

    do_HEAD = do_GET  # noqa: N815 http.server's own name

    def _info(self, revision: str) -> dict[str, object]:
        commit = self.server.main if revision == "main" else revision
        siblings = [{"rfilename": name, "size": len(content)} for name, content in self.server.files.items()]
        return {"id": "org/model", "sha": commit, "siblings": siblings, "tags": [], "private": False, "downloads": 0}

    def _tree(self) -> list[dict[str, object]]:
        files = self.server.files.items()
        return [{"type": "file", "path": name, "size": len(content), "oid": _oid(content)} for name, content in files]

    def _file(self, commit: str, name: str) -> None:
        content = self.server.files[name]
        self._send(content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": commit}, cut=name == self.server.cut)

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    with Hub() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
