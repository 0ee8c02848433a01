"""Keys and secrets that change while a server runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from rlt_client._http import HTTP
from rlt_client.errors import Unauthorized
from rlt_client.schemas.common import Reply, Scope
from rlt_service.app import create_app
from rlt_service.auth import Authenticator, requires
from rlt_service.key_files import LOOK_S, KeyFiles
from rlt_service.keys import BadKeys, Key, create_token, hash_token
from rlt_service.metrics import Metrics
from rlt_service.routing import Router
from rlt_service.secret_files import SETTLE_S, secret
from rlt_service.settings import ServerSettings, load
from rlt_service.sse import while_allowed

WITHIN_S = LOOK_S + SETTLE_S + 60  # what is promised, and a busy machine


def line(token: str, owner: str = "ann", scope: str = "reward") -> str:
    return f"{owner} {scope} sha256:{hash_token(token)}\n"


def in_place(file: Path, text: str) -> None:
    file.write_text(text)


def renamed_over(file: Path, text: str) -> None:
    new = file.with_name("new")
    new.write_text(text)
    new.replace(file)


def swapped(file: Path, text: str) -> None:
    """As Kubernetes does: `keys` → `..data/keys`, `..data` → a folder of its own for each content."""
    folder = file.parent / f"..{hash_token(text)[:8]}"
    folder.mkdir()
    (folder / file.name).write_text(text)
    link = file.parent / "..data_tmp"
    link.symlink_to(folder.name)
    link.replace(file.parent / "..data")
    if not file.is_symlink():
        file.unlink(missing_ok=True)
        file.symlink_to(f"..data/{file.name}")


async def comes(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not await true():  # noqa: ASYNC110 a file is looked at, which tells nobody
            await asyncio.sleep(0.05)


def make_app(file: Path, metrics: Metrics | None = None) -> httpx.AsyncClient:
    router = Router()

    @router.get("/thing", dependencies=[requires(Scope.reward)])
    async def thing() -> str:
        return "here"

    async def ready() -> dict[str, Any]:
        return {}

    settings = ServerSettings(keys_file=file)
    app = create_app(title="x", version="1", settings=settings, routers=[router], ready=ready, metrics=metrics)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def status(http: httpx.AsyncClient, token: str) -> int:
    return (await http.get("/thing", headers={"authorization": f"Bearer {token}"})).status_code


async def value(http: httpx.AsyncClient, metric: str) -> float:
    text = (await http.get("/metrics")).text
    return next(float(row.split()[1]) for row in text.splitlines() if row.startswith(f"{metric} "))


@pytest.mark.parametrize("written", [in_place, renamed_over, swapped])
async def test_a_key_comes_and_the_old_one_goes_without_a_restart(
    tmp_path: Path, written: Callable[[Path, str], None]
) -> None:
    """Old alone, both, new alone: the order in which nobody is ever refused."""
    old, new = create_token(), create_token()
    file = tmp_path / "keys"
    written(file, line(old))
    async with make_app(file) as http:
        assert (await status(http, old), await status(http, new)) == (200, 401)
        written(file, line(old) + line(new))

        async def both() -> bool:
            assert await status(http, old) == 200
            return await status(http, new) == 200

        async def new_alone() -> bool:
            assert await status(http, new) == 200
            return await status(http, old) == 401

        await comes(both)
        written(file, line(new))
        await comes(new_alone)


async def test_a_file_that_turns_bad_changes_nothing_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token, later = create_token(), create_token()
    file = tmp_path / "keys"
    file.write_text(line(token))
    async with make_app(file) as http:
        assert await value(http, "rlt_keys_files_unusable") == 0
        file.write_text(line(later) + "a line that is no key, with s3cret in it\n")

        async def told() -> bool:
            assert await status(http, token) == 200
            return await value(http, "rlt_keys_files_unusable") == 1

        await comes(told)
        assert await status(http, later) == 401  # not even its good lines: it may be half of something
        said = [record.getMessage() for record in caplog.records if record.name == "rlt_service.key_files"]
        assert len(said) == 1
        assert "line 2" in said[0]
        assert "s3cret" not in caplog.text
        file.unlink()
        await asyncio.sleep(LOOK_S * 1.2)
        assert await status(http, token) == 200
        file.write_text(line(later))

        async def mended() -> bool:
            return await status(http, later) == 200

        await comes(mended)
        assert await status(http, token) == 401
        assert await value(http, "rlt_keys_files_unusable") == 0
        assert await value(http, "rlt_keys") == 1


async def test_a_file_without_keys_closes_the_server_and_never_opens_it(tmp_path: Path) -> None:
    token = create_token()
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    async with make_app(file) as http:
        assert (await http.get("/thing")).status_code == 401
        file.write_text(line(token))

        async def let_in() -> bool:
            return await status(http, token) == 200

        await comes(let_in)
        file.write_text("")

        async def closed() -> bool:
            return await status(http, token) == 401

        await comes(closed)
        assert (await http.get("/thing")).status_code == 401


def test_an_unreadable_file_is_named_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(BadKeys, match="missing: No such file"):
        KeyFiles.of(ServerSettings(keys_file=tmp_path / "missing"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadKeys, match="not UTF-8"):
        KeyFiles.of(ServerSettings(keys_file=tmp_path / "binary"))


def test_file_and_variable_add_up(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(line("b"))
    assert len(KeyFiles.of(ServerSettings(keys=line("a"), keys_file=tmp_path / "keys"))) == 2


class Settings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="RLT_ROTATED_")
    other_key: SecretStr | None = None


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLT_SECRETS_DIR", str(tmp_path))
    return tmp_path


async def test_keys_of_a_secret_file_are_read_again_too(secrets: Path) -> None:
    old, new = create_token(), create_token()
    file = secrets / "rlt_rotated_keys"
    file.write_text(line(old))
    keys = KeyFiles.of(load(Settings, [], prog="x"), every=0)
    assert keys.watches
    assert await keys.find(hash_token(old)) is not None
    file.write_text(line(new))

    async def changed() -> bool:
        return await keys.find(hash_token(new)) is not None

    await comes(changed)
    assert await keys.find(hash_token(old)) is None


async def test_a_variable_goes_before_the_secret_file_and_stays(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (secrets / "rlt_rotated_keys").write_text(line("of the file"))
    (secrets / "rlt_rotated_other_key").write_text("of-the-file")
    monkeypatch.setenv("RLT_ROTATED_KEYS", line("of the variable"))
    monkeypatch.setenv("RLT_ROTATED_OTHER_KEY", "of-the-variable")
    settings = load(Settings, [], prog="x")
    assert not KeyFiles.of(settings).watches
    assert secret(settings, "other_key") == "of-the-variable"


async def test_what_a_server_sends_is_read_again(secrets: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = secrets / "rlt_rotated_other_key"
    file.write_text("first\n")
    current = secret(load(Settings, [], prog="x"), "other_key")
    assert callable(current)
    assert current() == "first"

    async def sends(wanted: str) -> bool:
        return current() == wanted

    renamed_over(file, "second\n")
    await comes(lambda: sends("second"))
    for broken in ("", "two\nlines", "schlüssel"):
        renamed_over(file, broken)
        await asyncio.sleep(SETTLE_S * 1.2)
        assert current() == "second"
    file.unlink()
    assert current() == "second"
    assert [record.levelname for record in caplog.records if record.name == "rlt_service.secret_files"].count(
        "ERROR"
    ) == 1
    file.write_text("third")
    await comes(lambda: sends("third"))


async def test_a_request_that_meets_the_change_is_sent_again() -> None:
    """The other side has dropped the old key before this side knew the new one."""
    keys = iter(["old", "new"])
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200 if seen[-1] == "Bearer new" else 401, json={"type": "unknown_key", "title": "no"})

    async with HTTP("http://x", key=lambda: next(keys), transport=httpx.MockTransport(answer)) as http:
        await http.request("GET", "/", reply=Reply)
    assert seen == ["Bearer old", "Bearer new"]


async def test_a_key_that_stays_wrong_is_asked_about_once() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(401, json={"type": "unknown_key", "title": "no"})

    async with HTTP("http://x", key=lambda: "wrong", transport=httpx.MockTransport(answer)) as http:
        with pytest.raises(Unauthorized):
            await http.request("GET", "/", reply=Reply)
    assert seen == ["Bearer wrong"]


class OneKey:
    """A key store whose key can be taken back."""

    def __init__(self, token: str) -> None:
        self.key: Key | None = Key(hash_token(token), "ann", frozenset({Scope.reward}))

    async def find(self, token_hash: str) -> Key | None:
        return self.key if self.key and self.key.hash == token_hash else None


@pytest.mark.parametrize(("scope", "seen"), [(Scope.reward, 3), (Scope.build, 0)])
async def test_an_endless_reply_ends_when_its_key_is_taken_back(scope: Scope, seen: int) -> None:
    token = create_token()
    keys = OneKey(token)
    settings = ServerSettings(keys=line(token))
    app = FastAPI()
    app.state.auth = Authenticator.of(settings, keys)
    headers = [(b"authorization", f"Bearer {token}".encode())]
    request = Request({"type": "http", "app": app, "headers": headers, "path_params": {}, "state": {}})

    async def frames() -> AsyncIterator[bytes]:
        for number in range(1000):
            yield f"{number}".encode()
            if number == 2:
                keys.key = None

    assert len([frame async for frame in while_allowed(request, scope, frames(), every=0)]) == seen


def test_a_look_costs_no_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(line("a"))
    os.utime(file, (1, 1))
    keys = KeyFiles.of(ServerSettings(keys_file=file), every=0)
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("it was read"))
    for _ in range(10):
        assert asyncio.run(keys.find(hash_token("a"))) is not None
