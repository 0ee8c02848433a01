"""The secrets of a stack of containers: made once, each service with its own, and the servers agree about them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rlt_client.schemas.common import Scope
from rlt_jobs.settings import Settings as JobsSettings
from rlt_reward_server.settings import Settings as RewardSettings
from rlt_service.keys import hash_token, parse_keys
from rlt_service.secrets import main, prepare
from rlt_service.settings import load
from rlt_teacher_server.settings import Settings as TeacherSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "secrets"
    made.mkdir()
    prepare(made)
    return made


def text(folder: Path, name: str) -> str:
    return (folder / name).read_text().strip()


def accepted(folder: Path, server: str) -> dict[str, frozenset[Scope]]:
    keys = parse_keys(text(folder, f"{server}/rlt_{server}_keys"), server)
    return {key.hash: key.scopes for key in keys}


@pytest.mark.parametrize(
    ("caller", "server", "scopes"),
    [("jobs", "teacher", {Scope.explain}), ("jobs", "reward", {Scope.reward}), ("teacher", "reward", {Scope.reward})],
)
def test_each_server_accepts_its_callers_for_what_they_need(folder, caller, server, scopes):
    token = text(folder, f"{caller}/rlt_{caller}_{server}_key")
    assert accepted(folder, server)[hash_token(token)] == scopes


def test_the_users_key_opens_every_server(folder):
    token = hash_token(text(folder, "rlt.key"))
    assert all(accepted(folder, server)[token] == set(Scope) for server in ("reward", "teacher", "jobs"))


def test_no_folder_holds_a_token_that_another_server_gives_out(folder):
    callers = {file: file.read_text().strip() for file in folder.rglob("*_key")}
    assert len(set(callers.values())) == len(callers) == 3
    for file, token in callers.items():
        holders = [path for path in folder.rglob("*") if path.is_file() and token in path.read_text()]
        assert holders == [file]


def test_databases_and_the_jobs_service_know_the_same_passwords(folder):
    url = urlsplit(text(folder, "jobs/rlt_jobs_database_url"))
    assert (url.password, url.hostname, url.username) == (text(folder, "postgres/rlt_password"), "postgres", "rlt")
    assert text(folder, "postgres/superuser_password") != url.password
    broker = urlsplit(text(folder, "jobs/rlt_jobs_redis_url"))
    assert broker.password == text(folder, "redis/password")
    assert text(folder, "redis/redis.conf") == f"requirepass {broker.password}"


def test_the_object_store_takes_the_credentials_of_the_jobs_service(folder, monkeypatch):
    botocore = pytest.importorskip("botocore.session")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "jobs" / "aws_credentials"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    found = botocore.Session().get_credentials()
    assert (found.access_key, found.secret_key) == (text(folder, "s3/user"), text(folder, "s3/password"))


def test_the_servers_read_what_was_made(folder, monkeypatch):
    monkeypatch.setenv("RLT_SECRETS_DIR", str(folder / "jobs"))
    jobs = load(JobsSettings, [])
    assert jobs.database_url == text(folder, "jobs/rlt_jobs_database_url")
    assert jobs.teacher_key is not None
    assert jobs.teacher_key.get_secret_value() == text(folder, "jobs/rlt_jobs_teacher_key")
    monkeypatch.setenv("RLT_SECRETS_DIR", str(folder / "teacher"))
    teacher = load(TeacherSettings, ["--model", "m"])
    assert teacher.reward_key is not None
    assert len(parse_keys(teacher.keys, "keys")) == 2
    monkeypatch.setenv("RLT_SECRETS_DIR", str(folder / "reward"))
    assert len(parse_keys(load(RewardSettings, ["--student", "s"]).keys, "keys")) == 3


def test_a_second_time_nothing_changes(folder, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == "every secret is there\n"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_people_wrote_stays(folder):
    keys = folder / "reward" / "rlt_reward_keys"
    mine = "# of the other team\nother reward sha256:" + "0" * 64
    keys.chmod(0o644)
    keys.write_text(mine + "\n")
    (folder / "jobs" / "rlt_jobs_database_url").chmod(0o644)
    (folder / "jobs" / "rlt_jobs_database_url").write_text("postgresql+psycopg://me@elsewhere/db\n")
    assert prepare(folder) == ["reward/rlt_reward_keys"]
    assert keys.read_text().startswith(mine)
    assert len(accepted(folder, "reward")) == 4
    assert "elsewhere" in text(folder, "jobs/rlt_jobs_database_url")


def test_a_deleted_key_is_made_anew_beside_the_old_one(folder):
    old = text(folder, "teacher/rlt_teacher_reward_key")
    (folder / "teacher" / "rlt_teacher_reward_key").unlink()
    assert prepare(folder) == ["reward/rlt_reward_keys", "teacher/rlt_teacher_reward_key"]
    new = text(folder, "teacher/rlt_teacher_reward_key")
    assert new != old
    assert {hash_token(old), hash_token(new)} <= set(accepted(folder, "reward"))


def test_files_are_open_to_services_in_a_folder_that_is_not(folder):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {0o444}
    assert {path.name for path in folder.iterdir() if path.is_dir()} >= {"proxy", "postgres", "redis"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_a_containers_root_makes_belongs_to_whose_folder_it_is(tmp_path):
    os.chown(tmp_path, 12345, 12345)
    prepare(tmp_path)
    assert {path.stat().st_uid for path in tmp_path.rglob("*")} == {12345}


def test_a_broken_keys_file_is_named_without_what_is_in_it(folder, capsys):
    keys = folder / "jobs" / "rlt_jobs_keys"
    keys.chmod(0o644)
    keys.write_text("hunter2\n")
    (folder / "rlt.key").unlink()
    assert main([str(folder)]) == 1
    said = capsys.readouterr().err
    assert "rlt_jobs_keys, line 1" in said
    assert "hunter2" not in said


def test_it_says_what_it_made_and_no_secret(tmp_path):
    command = [sys.executable, "-m", "rlt_service.secrets", str(tmp_path), "--postgres", "db.example:6000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "made rlt.key\n" in done.stdout
    assert "@db.example:6000/rlt" in text(tmp_path, "jobs/rlt_jobs_database_url")
    secret = [line.split()[-1] for path in tmp_path.rglob("*") if path.is_file() for line in path.open()]
    assert not any(word in done.stdout + done.stderr for word in secret)
