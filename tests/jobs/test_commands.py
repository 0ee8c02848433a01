"""The command line: light to start, clear when something is missing, keys in the database."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from rlt_jobs import admin
from rlt_jobs.app import build as build_app
from rlt_jobs.settings import Settings
from rlt_service.settings import load

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


async def test_a_key_of_the_database_opens_the_api_until_it_is_revoked(
    postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added = run("keys", "add", "carol", "build", database_url=postgres_url)
    assert added.returncode == 0, added.stderr
    token = added.stdout.strip()
    settings = Settings(database_url=postgres_url, store=str(tmp_path), database_keys=True)
    app = build_app(settings)
    transport = httpx.ASGITransport(app)
    headers = {"authorization": f"Bearer {token}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        assert (await client.get("/builds", headers=headers)).status_code == 200
        assert (await client.get("/builds")).status_code == 401
        assert await admin.keys(settings, ["list"]) == 0
        listed = capsys.readouterr().out.split()
        assert listed[1:] == ["carol", "build"]
        assert token not in listed
        assert await admin.keys(settings, ["revoke", listed[0]]) == 0
        assert (await client.get("/builds", headers=headers)).status_code == 401
        assert await admin.keys(settings, ["revoke", listed[0]]) == 1


@pytest.mark.parametrize(
    "args", [["add", "carol"], ["add", "carol", "root"], ["add", "a b", "build"], ["revoke", "ab"], []]
)
def test_keys_that_cannot_be_are_refused(args: list[str], postgres_url: str) -> None:
    assert admin.run(admin.keys(Settings(database_url=postgres_url), args), "rlt-jobs keys") != 0
