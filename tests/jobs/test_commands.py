"""The command line: light to start, clear when something is missing, keys in the database."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from plugins.schemas import execute

from rlt_jobs import admin, key_commands
from rlt_jobs.app import build as build_app
from rlt_jobs.settings import Settings
from rlt_service.settings import load

Keys = Callable[..., Awaitable[tuple[str, int]]]
Call = Callable[..., Awaitable[httpx.Response]]
HEAVY = ("sqlalchemy", "celery", "pyarrow", "fastapi", "numpy", "torch")


def run(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RLT_")}
    env |= {f"RLT_JOBS_{name}".upper(): value for name, value in variables.items()}
    return subprocess.run(
        [sys.executable, "-m", "rlt_jobs", *args], capture_output=True, text=True, env=env, timeout=60, check=False
    )


SCRIPT = """
import runpy, sys
sys.argv = ["rlt-jobs", "api", "--help"]
try:
    runpy.run_module("rlt_jobs", run_name="__main__")
except SystemExit as end:
    assert end.code == 0
heavy = [name for name in {heavy!r} if name in sys.modules]
assert not heavy, heavy
"""


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    argv = [sys.executable, "-c", SCRIPT.format(heavy=HEAVY)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "RLT_JOBS_DATABASE_URL" in done.stdout


def test_every_setting_explains_itself() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "--database-url (RLT_JOBS_DATABASE_URL) is required"),
        ({"lease_seconds": "10"}, "heartbeat_seconds must be at most half of lease_seconds"),
        ({"task_limit_seconds": "1000"}, "shard_limit_seconds must be below 90 %"),
        ({"port": "70000"}, "--port (RLT_JOBS_PORT)"),
    ],
)
def test_settings_that_cannot_be_end_the_process_with_a_line(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    database = {"database_url": "postgresql+psycopg://nowhere"} if variables else {}
    for name, value in {**database, **variables}.items():
        monkeypatch.setenv(f"RLT_JOBS_{name}".upper(), value)
    with pytest.raises(SystemExit) as ended:
        load(Settings, [], prog="rlt-jobs api")
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_an_unknown_command_shows_the_known_ones() -> None:
    done = run("serve")
    assert done.returncode == 2
    assert "relay" in done.stderr


def test_migrating_a_database_that_is_down_says_so(tmp_path: Path) -> None:
    done = run("migrate", database_url=f"postgresql+psycopg://rlt@/postgres?host={tmp_path}")
    assert (done.returncode, done.stderr.startswith("rlt-jobs migrate: error:")) == (1, True), done.stderr
    assert "Traceback" not in done.stderr


def test_checking_a_database_that_is_down_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(database_url=f"postgresql+psycopg://rlt@/postgres?host={tmp_path}", store=str(tmp_path))
    assert admin.run(admin.check_store(settings), "rlt-jobs check") == 1
    assert "database is not available" in capsys.readouterr().err


@pytest.fixture
def keys(postgres_url: str, capsys: pytest.CaptureFixture[str]) -> Keys:
    """`rlt-jobs keys` in this process: what it prints, and its exit code."""

    async def command(*args: str) -> tuple[str, int]:
        asked = key_commands.parser("rlt-jobs keys").parse_args(args)
        code = await key_commands.keys(Settings(database_url=postgres_url), asked)
        return capsys.readouterr().out.strip(), code

    return command


async def line_of(keys: Keys, owner: str) -> list[str]:
    """What the list says of the key of `owner`, in words: id, owner, scopes, limits."""
    listed, _ = await keys("list")
    (found,) = [words for line in listed.splitlines() if (words := line.split())[1] == owner]
    return found


@asynccontextmanager
async def api(url: str, store: Path, **settings: Any) -> AsyncIterator[Call]:
    app = build_app(Settings(database_url=url, store=str(store), database_keys=True, **settings))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):

        async def call(token: str | None, problems: int = 0) -> httpx.Response:
            """Ask for the builds, or for one of so many samples."""
            headers = {"authorization": f"Bearer {token}"} if token else {}
            if not problems:
                return await client.get("/builds", headers=headers)
            rows = [{"question": f"Q{index}", "answer": "A"} for index in range(problems)]
            return await client.post("/builds", headers=headers, json={"dataset": "d", "n": 1, "problems": rows})

        yield call


async def test_a_key_of_the_database_opens_the_api_until_it_is_revoked(
    postgres_url: str, tmp_path: Path, keys: Keys
) -> None:
    added = run("keys", "add", "carol", "build", database_url=postgres_url)
    assert added.returncode == 0, added.stderr
    token = added.stdout.strip()
    async with api(postgres_url, tmp_path) as call:
        assert (await call(token)).status_code == 200
        assert (await call(None)).status_code == 401
        id, *words = await line_of(keys, "carol")
        assert words == ["carol", "build"]
        assert token not in (await keys("list"))[0]
        assert (await keys("revoke", id))[1] == 0
        assert (await call(token)).status_code == 401
        assert [(await keys(*command))[1] for command in (["revoke", id], ["set", id, "--rate", "1/day"])] == [1, 1]


async def test_a_limit_of_a_key_holds_at_once_and_its_token_stays(
    postgres_url: str, tmp_path: Path, keys: Keys
) -> None:
    token, _ = await keys("add", "dora", "build", "--rate", "2/day", "--items", "5/day")
    async with api(postgres_url, tmp_path) as call:
        assert [(await call(token)).status_code for _ in range(2)] == [200, 200]
        refused = await call(token)
        assert (refused.status_code, refused.json()["type"].rpartition("/")[2]) == (429, "rate_limited")
        assert float(refused.headers["retry-after"]) > 0
        assert "2 requests in 86400 seconds" in refused.json()["detail"]
        id, *words = await line_of(keys, "dora")
        assert words == ["dora", "build", "rate=2/day", "items=5/day"]

        assert await keys("set", id, "--rate", "100/day") == (f"{id}  dora  build  rate=100/day  items=5/day", 0)
        assert (await call(token, problems=4)).status_code == 202
        refused = await call(token, problems=2)
        assert (refused.status_code, "5 items" in refused.json()["detail"]) == (429, True)
        assert await keys("set", id, "--items", "default") == (f"{id}  dora  build  rate=100/day", 0)
        assert (await call(token, problems=2)).status_code == 202


async def test_a_key_without_limits_has_those_of_the_server(postgres_url: str, tmp_path: Path, keys: Keys) -> None:
    (own, _), (other, _) = await keys("add", "ed", "build", "--rate", "3/day"), await keys("add", "flo", "build")
    async with api(postgres_url, tmp_path, rate_limit="1/day") as call:
        assert [(await call(own)).status_code for _ in range(3)] == [200, 200, 200]
        assert [(await call(other)).status_code for _ in range(2)] == [200, 429]


ID = "0" * 12


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["add", "carol"], "SCOPE[,SCOPE]"),
        (["add", "carol", "root"], "no such scope: root; there are explain"),
        (["add", "a b", "build"], "up to 64 letters"),
        (["add", "carol", "build", "--rate", "often"], "--rate: want a number a second, minute, hour or day"),
        (["add", "carol", "build", "--rate", "0/day"], "--rate: want a number a second, minute, hour or day"),
        (["add", "carol", "build", "--items", "1/week"], "--items: want a number a second, minute, hour or day"),
        (["add", "carol", "build", "--items", "default"], "--items: want a number a second, minute, hour or day"),
        (["set", ID, "--rate", "9" * 13 + "/day"], "--rate: want a number a second, minute, hour or day"),
        (["set", "ab", "--rate", "1/day"], "want at least 12 digits"),
        (["revoke", "ab"], "want at least 12 digits"),
        (["revoke", "%" * 12], "want at least 12 digits"),
        ([], "add | list | set | revoke"),
    ],
)
async def test_keys_that_cannot_be_are_refused(
    args: list[str], says: str, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        await keys(*args)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


async def test_a_limit_is_named_or_nothing_changes(keys: Keys) -> None:
    assert (await keys("set", ID))[1] == 2
    assert (await keys("set", ID, "--rate", "1/day"))[1] == 1  # there is no such key


@pytest.mark.parametrize("column", ["rate", "items"])
@pytest.mark.parametrize("value", ["often", "0/day", "1/day ", "1/day\n2/day"])
def test_the_database_takes_no_limit_that_is_none(postgres_url: str, column: str, value: str) -> None:
    row = f"INSERT INTO keys (hash, owner, scopes, {column}) VALUES ('{'0' * 64}', 'ann', '{{build}}', '{value}')"
    with pytest.raises(psycopg.errors.CheckViolation):
        execute(postgres_url, row)


def test_help_of_keys_needs_no_settings() -> None:
    done = run("keys", "set", "--help")
    assert (done.returncode, "--items" in done.stdout) == (0, True)
