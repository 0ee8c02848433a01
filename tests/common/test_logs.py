"""Request ids, one line per request, tracebacks, and no secrets."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from pydantic import SecretStr

from rlt_client.schemas.common import Problem
from rlt_service import logs
from rlt_service.hidden import hide, secrets_of
from rlt_service.problems import problem_response
from rlt_service.settings import ServerSettings

SECRET = "rlt_" + "k3y7" * 13  # the shape of a key; the same in every process of pytest-xdist


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"key {SECRET}.", "key [redacted]."),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [redacted]"),
        (f"/k/{SECRET}/echo", "/k/[redacted]/echo"),
        ("postgresql://rlt:hunter2@db/rlt", "postgresql://[redacted]@db/rlt"),
        ("redis://:hunter2@cache/0", "redis://[redacted]@cache/0"),
        ("HF_TOKEN=hf_" + "a" * 34, "HF_TOKEN=[redacted]"),
        (ValueError(f"no {SECRET}"), "no [redacted]"),
        ({SECRET: Path("/k") / SECRET}, {"[redacted]": "/k/[redacted]"}),
        (
            "rlt_http_request_duration_seconds and rlt_teacher_server",
            "rlt_http_request_duration_seconds and rlt_teacher_server",
        ),
        ({"a": [SECRET, {"b": (SECRET,)}], "n": 3}, {"a": ["[redacted]", {"b": ["[redacted]"]}], "n": 3}),
    ],
)
def test_redact(text: Any, expected: Any) -> None:
    assert logs.redact(text) == expected


def test_the_request_id_goes_in_out_and_into_the_log(http: httpx.Client, log_lines: Any) -> None:
    reply = http.post("/echo", json={"items": []}, headers={"x-request-id": "step-17/a:b"})
    assert reply.headers.get_list("x-request-id") == ["step-17/a:b"]
    (line,) = log_lines.records(event="request", request_id="step-17/a:b")
    expected = {"method": "POST", "route": "/echo", "status": 200, "owner": "alice", "service": "rlt-echo"}
    assert expected.items() <= line.items()
    assert line["duration_ms"] > 0
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize("bad", ["a b", "x" * 129, 'a"b', "é"])
def test_an_id_that_could_break_a_line_is_replaced(http: httpx.Client, bad: str) -> None:
    reply = http.get("/livez", headers={b"x-request-id": bad.encode()})
    assert len(reply.headers["x-request-id"]) == 32


def test_each_request_gets_its_own_id(http: httpx.Client) -> None:
    assert len({http.get("/livez").headers["x-request-id"] for _ in range(5)}) == 5


def test_the_route_template_is_logged_and_not_the_path(url: str, log_lines: Any, tokens: dict[str, str]) -> None:
    httpx.post(f"{url}/k/{tokens['path']}/echo", json={})
    httpx.get(f"{url}/things/secret-name", headers={"authorization": f"Bearer {tokens['admin']}"})
    routes = [line["route"] for line in log_lines.records(2, event="request")]
    assert routes == ["/k/{path_key}/echo", "/things/{name}"]
    assert tokens["path"] not in log_lines.getvalue()
    assert "secret-name" not in log_lines.getvalue()


def test_refusals_are_logged_without_an_owner(url: str, log_lines: Any) -> None:
    httpx.post(f"{url}/echo", json={}, headers={"authorization": "Bearer wrong-but-private"})
    (line,) = log_lines.records(event="request")
    assert (line["status"], line["owner"]) == (401, None)
    assert "wrong-but-private" not in log_lines.getvalue()


def test_the_owner_of_one_request_is_not_that_of_the_next(url: str, log_lines: Any, tokens: dict[str, str]) -> None:
    with httpx.Client(base_url=url) as http:
        http.get("/busy", headers={"authorization": f"Bearer {tokens['reward']}"})
        http.get("/busy")
    assert [line["owner"] for line in log_lines.records(2, event="request")] == ["alice", None]


def test_unexpected_errors_leave_a_traceback_without_secrets(
    http: httpx.Client, log_lines: Any, tokens: dict[str, str]
) -> None:
    reply = http.get("/boom")
    (line,) = log_lines.records(event="unexpected error")
    assert line["request_id"] == reply.headers["x-request-id"]
    assert line["owner"] == "alice"
    assert "db.internal" in line["exception"]
    assert "Traceback" in line["exception"]
    assert tokens["reward"] not in log_lines.getvalue()
    assert len([entry for entry in log_lines.records() if "exception" in entry]) == 1


def test_a_reply_that_breaks_off_is_logged_once(http: httpx.Client, log_lines: Any) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        http.get("/breaks", headers={"x-request-id": "broken"})
    assert len([line for line in log_lines.records(request_id="broken") if "exception" in line]) == 1


def test_health_checks_are_noise(http: httpx.Client, log_lines: Any) -> None:
    http.get("/livez")
    (line,) = log_lines.records(event="request")
    assert line["level"] == "debug"


def test_extras_of_the_standard_library_become_members(log_lines: Any) -> None:
    logging.getLogger("rlt_x").warning("took %s", "long", extra={"seconds": 3.5, "dsn": "redis://u:p@h"})
    structlog.get_logger("rlt_y").info("bound", rows=3)
    first, second = log_lines.records()
    expected = {
        "event": "took long",
        "seconds": 3.5,
        "dsn": "redis://[redacted]@h",
        "logger": "rlt_x",
        "level": "warning",
    }
    assert expected.items() <= first.items()
    assert {"event": "bound", "rows": 3, "logger": "rlt_y"}.items() <= second.items()


def test_line_breaks_cannot_forge_a_line(log_lines: Any) -> None:
    logging.getLogger("x").info('a\n{"event": "forged"}')
    assert log_lines.getvalue().count("\n") == 1


def test_console_is_for_people(capsys: pytest.CaptureFixture[str], log_lines: Any) -> None:
    logs.configure("info", "console")
    logging.getLogger("rlt_x").info("ready", extra={"port": 3})
    logging.getLogger("rlt_x").debug("hidden")
    logging.getLogger("httpx").info("hidden")
    printed = capsys.readouterr().err
    assert "ready" in printed
    assert "port=3" in printed
    assert "hidden" not in printed


def test_no_line_and_no_terminal_is_taken_over(capsys: pytest.CaptureFixture[str], log_lines: Any) -> None:
    logs.configure("info", "console")
    logging.getLogger("x").info("a\n2026 forged", extra={"name_of": "b\x1b[2J\x9b\r\nforged"})
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert not set(printed) & {"\x1b", "\x9b", "\r"}


def test_what_the_process_holds_is_hidden_wherever_it_is_said(log_lines: Any) -> None:
    class Held(ServerSettings):
        engine_key: SecretStr = SecretStr("plain-words-of-an-engine")
        database_url: str = "postgresql+psycopg://rlt:p%40ssw0rd-of-db@db/rlt"
        engines: list[str] = ["http://me:of-an-address@host"]  # noqa: RUF012 a field

    hide(secrets_of(Held()))
    logging.getLogger("x").error(
        "%s", {"a": ("plain-words-of-an-engine", "p@ssw0rd-of-db")}, extra={"k": "of-an-address"}
    )
    said = log_lines.getvalue()
    assert said.count("[redacted]") == 3
    for secret in ("plain-words", "ssw0rd", "of-an-address"):
        assert secret not in said
    problem = problem_response(Problem(type="x", title="x", detail="it said plain-words-of-an-engine"), 500)
    assert b"plain-words" not in problem.body


async def test_concurrent_requests_do_not_mix(url: str, log_lines: Any, tokens: dict[str, str]) -> None:
    async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {tokens['reward']}"}) as http:
        ids = [f"request-{number}" for number in range(40)]
        replies = await asyncio.gather(*(http.get("/boom", headers={"x-request-id": name}) for name in ids))
    assert [reply.json()["request_id"] for reply in replies] == ids
    assert sorted(line["request_id"] for line in log_lines.records(event="unexpected error")) == sorted(ids)
