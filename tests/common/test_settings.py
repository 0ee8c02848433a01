"""Flags, variables, secret files, and what a wrong one says."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from rlt_service.settings import PathList, ServerSettings, StrList, load


class Settings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="RLT_ECHO_")
    port: int = Field(8009, ge=0, le=65535, description="port to listen on")
    student: str = Field(description="name or folder of the student")
    names: StrList = Field([], description="names, separated by commas")


SCRIPT = """
import sys
from pydantic import Field
from pydantic_settings import SettingsConfigDict
from rlt_service.settings import ServerSettings, load
class Settings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="RLT_ECHO_")
    student: str = Field(description="name or folder of the student")
load(Settings, prog="rlt-echo")
assert "fastapi" not in sys.modules
"""


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT, *args], capture_output=True, text=True, check=False)


def failed(argv: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as caught:
        load(Settings, argv, prog="rlt-echo")
    assert caught.value.code == 2
    return capsys.readouterr().err.strip().splitlines()


def test_flags_win_over_variables_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLT_ECHO_PORT", "9001")
    monkeypatch.setenv("RLT_ECHO_HOST", "127.0.0.2")
    monkeypatch.setenv("RLT_ECHO_KEYS", "")  # as a compose file leaves it
    settings = load(Settings, ["--student", "tiny", "--port", "9002"])
    assert (settings.port, settings.host, settings.log_format, settings.keys) == (9002, "127.0.0.2", "json", "")


def test_kebab_case_and_switches() -> None:
    settings = load(Settings, ["--student=x", "--max-body-bytes", "77", "--allow-anonymous"])
    assert (settings.max_body_bytes, settings.allow_anonymous) == (77, True)
    assert not load(Settings, ["--student=x", "--no-allow-anonymous"]).allow_anonymous


def test_lists_by_commas_and_by_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLT_ECHO_ALLOWED_ROOTS", "/a, /b")
    settings = load(Settings, ["--student=x", "--names", "u", "--names", "v,w"])
    assert settings.allowed_roots == [Path("/a"), Path("/b")]
    assert settings.names == ["u", "v", "w"]


def test_secret_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rlt_echo_student").write_text("secret-model\n")
    monkeypatch.setenv("RLT_SECRETS_DIR", str(tmp_path))
    assert load(Settings, []).student == "secret-model"
    monkeypatch.setenv("RLT_ECHO_STUDENT", "louder")
    assert load(Settings, []).student == "louder"


def test_a_missing_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert failed([], capsys) == ["rlt-echo: error: --student (RLT_ECHO_STUDENT) is required"]


def test_each_wrong_value_has_its_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLT_ECHO_PORT", "99999")
    lines = failed(["--student=x", "--log-format", "xml"], capsys)
    assert lines == [
        "rlt-echo: error: --port (RLT_ECHO_PORT): Input should be less than or equal to 65535, got '99999'",
        "rlt-echo: error: --log-format (RLT_ECHO_LOG_FORMAT): Input should be 'json' or 'console', got 'xml'",
    ]


def test_an_unknown_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unrecognized arguments: --studnt" in failed(["--student=x", "--studnt"], capsys)[-1]


def test_help_names_each_variable_and_is_quick() -> None:
    run("--help")  # the first run compiles
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert after.ru_utime - before.ru_utime < 1  # of the processor: other tests share the cores
    for name, field in ServerSettings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in done.stdout
        assert f"RLT_ECHO_{name.upper()}" in done.stdout.replace("\n", "").replace(" ", "")
        assert field.description


def test_wrong_values_leave_no_traceback() -> None:
    done = run("--port", "many", "--student", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "rlt-echo: error: --port (RLT_ECHO_PORT): "
        "Input should be a valid integer, unable to parse string as an integer, got 'many'"
    ]


def test_settings_load_without_a_web_framework() -> None:
    done = run("--student", "x")
    assert (done.returncode, done.stderr) == (0, "")


def test_path_lists_take_python_values_as_they_are() -> None:
    class Plain(ServerSettings):
        folders: PathList = Field([], description="folders")

    assert Plain(folders=[Path("/x")]).folders == [Path("/x")]
