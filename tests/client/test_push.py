"""`rlt build export --push` against a hub that is played over real HTTP: its requests, commits and stored bytes."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from rlt_client.cli.app import make_app
from rlt_client.cli.errors import CommandFailed

FILES = {
    "README.md": b"---\nconfigs: []\n---\n# chains, version 2\n",
    "data/train-00000.parquet": b"PAR1" + bytes(range(256)) * 4_000 + b"PAR1",
    "data/train-00001.parquet": b"PAR1" + bytes(range(255, -1, -1)) * 10 + b"PAR1",
}
VERSION: dict[str, Any] = {
    "id": 7,
    "dataset": "chains",
    "number": 2,
    "parent": None,
    "build": 3,
    "rows": 2,
    "selection": {},
    "scorer": None,
    "manifest": {"uri": "m", "rows": 2, "bytes": 1, "sha256": "0"},
    "files": [],
    "counts": {},
    "lineage": {},
    "created_at": "2026-11-21T00:00:00Z",
}


def _archive() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    return packed.getvalue()


@dataclass
class Hub:
    """The hub's routes that a push needs, and the jobs service's that an export needs, at one address.

    Large files are those named *.parquet: they are put into the LFS store first, and a commit names them by SHA-256.
    """

    token: str = "hf_secret"
    private: bool = False
    exists: bool = False
    files: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b"*.parquet lfs"}})
    """By branch and name."""
    large: dict[str, bytes] = field(default_factory=dict)
    commits: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        self.asked.append(path)
        if path.startswith(("/livez", "/versions", "/builds")):
            return self._jobs(path)
        if path.startswith("/lfs/"):
            return self._put(path.removeprefix("/lfs/"), body)
        if path.startswith("/datasets/ann/chains/resolve/"):
            name = path.removeprefix("/datasets/ann/chains/resolve/").partition("/")[2]
            return (200, self.files["main"][name]) if name in self.files["main"] else (404, {})
        if token != self.token:
            return 401, {"error": "Invalid username or password."}
        asked = json.loads(body) if body and not path.split("?")[0].rpartition("/commit/")[1] else {}
        return self._hub(method, path, asked, body)

    def _jobs(self, path: str) -> tuple[int, Any]:
        known = {"/livez": {}, "/versions/7": VERSION, "/versions/7/export": _archive()}
        return 200, known[path]

    def _put(self, oid: str, body: bytes) -> tuple[int, Any]:
        assert hashlib.sha256(body).hexdigest() == oid
        self.large[oid] = body
        return 200, {}

    def _hub(self, method: str, path: str, asked: dict[str, Any], body: bytes) -> tuple[int, Any]:
        repo = "/api/datasets/ann/chains"
        if path == "/api/repos/create":
            return self._create(asked)
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/datasets/ann/chains.git/info/lfs/objects/batch":
            return 200, {"transfer": "basic", "objects": [self._slot(each) for each in asked["objects"]]}
        if method == "POST" and path.startswith(f"{repo}/branch/"):
            self.files.setdefault(path.rpartition("/")[2], dict(self.files["main"]))
            return 200, {}
        if path.startswith(f"{repo}/preupload/"):
            modes = [("lfs" if f["path"].endswith(".parquet") else "regular", f["path"]) for f in asked["files"]]
            return 200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for m, p in modes]}
        if path.startswith(f"{repo}/commit/"):
            return self._commit(path.rpartition("/")[2], body)
        if path == repo or path.startswith(f"{repo}/revision/"):
            branch = path.rpartition("/revision/")[2] if "/revision/" in path else "main"
            return 200, self._info(branch)
        if path.startswith(f"{repo}/tree/"):
            branch, _, folder = path.partition("/tree/")[2].partition("/")
            files = self.files.get(branch, self.files["main"])  # else a commit, of which there is one
            folders = {name.partition("/")[0] for name in files if "/" in name and not folder}
            return 200, [
                *({"type": "directory", "path": name, "oid": "0"} for name in folders),
                *({"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in files.items() if folder in p),
            ]
        return 404, {"error": f"this hub has no {method} {path}"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        assert (asked["type"], asked["organization"], asked["name"]) == ("dataset", "ann", "chains")
        if self.exists:
            return 409, {"error": "You already created this dataset repo", "url": f"{self.url}/datasets/ann/chains"}
        self.exists, self.private = True, asked.get("visibility") == "private"
        return 200, {"url": f"{self.url}/datasets/ann/chains"}

    def _info(self, branch: str) -> dict[str, Any]:
        siblings = [{"rfilename": name} for name in self.files.get(branch, self.files["main"])]
        return {"id": "ann/chains", "private": self.private, "sha": "0" * 40, "siblings": siblings, "tags": []}

    def _slot(self, each: dict[str, Any]) -> dict[str, Any]:
        return {**each, "actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}"}}}

    def _commit(self, branch: str, body: bytes) -> tuple[int, Any]:
        header: dict[str, Any] = {}
        files = dict(self.files[branch])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.files[branch] = files
        self.commits.append((branch, header))
        sha = f"{len(self.commits):040x}"
        return 200, {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/datasets/ann/chains/commit/{sha}"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    played = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            status, reply = played.answer(self.command, urlsplit(self.path).path, body, token)
            content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.send_header("content-type", "application/json")
            self.send_header("etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("x-repo-commit", "0" * 40)
            if status == 404:
                self.send_header("x-error-code", "EntryNotFound")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815 names of the standard library

        def log_message(self, *_: Any) -> None:
            """Nothing: the tests' output is theirs."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    played.url = f"http://127.0.0.1:{server.server_port}"
    yield played
    server.shutdown()
    server.server_close()
    thread.join()


def _command(hub: Hub) -> list[str]:
    return ["build", "export", "--version", "7", "--push", "ann/chains", "--jobs-url", hub.url]


def test_a_push_is_one_commit_of_the_same_bytes_and_leaves_nothing_here(hub: Hub, tmp_path: Path) -> None:
    hub.files["main"]["data/train-00002.parquet"] = b"of an earlier version"
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    # without Xet, the hub's own protocol for chunks, files go through LFS
    told = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    env = {**kept, **told, "HOME": str(tmp_path), "HF_HOME": str(tmp_path)}
    argv = [sys.executable, "-m", "rlt_client.cli", *_command(hub), "--private", "--json"]
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert hub.files["main"] == {".gitattributes": b"*.parquet lfs", **FILES}
    ((branch, header),) = hub.commits
    assert (branch, header["summary"]) == ("main", "chains, version 2")
    assert hub.private
    url = f"{hub.url}/datasets/ann/chains/commit/{1:040x}"
    assert json.loads(done.stdout) == {"version": 7, "bytes": len(_archive()), "url": url}
    assert hub.token not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.parquet"))


CARD = b"""---
configs:
- config_name: v2-raw-0123456789ab
  data_files:
  - split: train
    path: data/train-*.parquet
---
"""
LOAD = """
import datasets
rows = datasets.load_dataset("ann/chains", split="train")
print(rows.info.config_name, rows.to_list())
"""


def test_what_was_pushed_is_loaded_by_its_name_alone(hub: Hub, tmp_path: Path) -> None:
    """The card's only configuration is the one that is meant, whatever it is called."""
    rows = io.BytesIO()
    pq.write_table(pa.table({"question": ["Q"]}), rows)
    hub.files["main"] = {"README.md": CARD, "data/train-00000.parquet": rows.getvalue()}
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    told = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    env = {**kept, **told, "HOME": str(tmp_path), "HF_HOME": str(tmp_path)}
    argv = [sys.executable, "-c", LOAD]
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "v2-raw-0123456789ab [{'question': 'Q'}]\n"


@pytest.fixture
def run(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The same command in this process, which is quicker."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.chdir(tmp_path)
    return lambda *options: CliRunner().invoke(make_app(), [*_command(hub), *options])


def test_a_push_to_a_branch_keeps_the_folder_that_was_named(
    hub: Hub, run: Callable[..., Result], tmp_path: Path
) -> None:
    hub.exists = True
    done = run("--revision", "v2", "--to", "here")
    assert done.exit_code == 0, done.exception
    assert hub.files["v2"] == {".gitattributes": b"*.parquet lfs", **FILES}
    assert hub.files["main"] == {".gitattributes": b"*.parquet lfs"}
    assert {name: (tmp_path / "here" / name).read_bytes() for name in FILES} == FILES


def test_what_should_be_private_is_never_added_to_what_is_public(hub: Hub, run: Callable[..., Result]) -> None:
    hub.exists = True
    done = run("--private")
    assert isinstance(done.exception, CommandFailed)
    assert "public" in str(done.exception)
    assert hub.commits == []


def test_a_refusal_of_the_hub_is_told(hub: Hub, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    done = run()
    assert isinstance(done.exception, CommandFailed)
    assert str(done.exception) == "the hub refuses: Invalid username or password."
    assert hub.commits == []


def test_so_is_a_name_that_is_none(hub: Hub, run: Callable[..., Result]) -> None:
    done = run("--push", "a/b/c")
    assert isinstance(done.exception, CommandFailed)
    assert "a/b/c" in str(done.exception)


def test_without_huggingface_hub_it_is_said_before_the_download(
    hub: Hub, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    done = run()
    assert isinstance(done.exception, CommandFailed)
    assert "pip install 'rlt-client[hub]'" in str(done.exception)
    assert hub.asked == []


@pytest.mark.parametrize(
    "options", [["--as", "jsonl", "--push", "a/b"], ["--private"], ["--revision", "x"]], ids=["as", "private", "branch"]
)
def test_wrong_usage_is_told_before_anything_is_sent(options: list[str]) -> None:
    done = CliRunner().invoke(make_app(), ["build", "export", "1", "--jobs-url", "http://127.0.0.1:9", *options])
    assert done.exit_code == 2
