"""`rlt keys create`."""

from __future__ import annotations

import re
from importlib.metadata import entry_points

import typer
from typer.testing import CliRunner

from rlt_client.schemas.common import Scope
from rlt_service.commands import register
from rlt_service.keys import TOKEN_PATTERN, hash_token, parse_keys


def invoke(*args: str) -> tuple[int, str]:
    app = typer.Typer()
    register(app)
    done = CliRunner().invoke(app, ["keys", "create", *args])
    return done.exit_code, done.output


def test_the_line_fits_the_token() -> None:
    code, output = invoke("--owner", "ann", "--scope", "explain", "--scope", "reward", "--in-path")
    assert code == 0
    tokens = re.findall(TOKEN_PATTERN, output)
    assert len(tokens) == 1
    line = next(line for line in output.splitlines() if "sha256:" in line)
    (key,) = parse_keys(line, "output")
    assert key.hash == hash_token(tokens[0])
    assert (key.owner, key.scopes, key.in_path) == ("ann", frozenset({Scope.explain, Scope.reward}), True)


def test_limits_of_a_key() -> None:
    code, output = invoke("--owner", "ann", "--scope", "explain", "--rate", "100/minute", "--items", "5000/hour")
    assert code == 0
    (key,) = parse_keys(next(line for line in output.splitlines() if "sha256:" in line), "output")
    assert (key.rate, key.items) == ("100/minute", "5000/hour")
    code, output = invoke("--owner", "ann", "--scope", "explain", "--rate", "100 a minute")
    assert code == 2
    assert "--rate" in output


def test_wrong_scope_and_owner() -> None:
    assert invoke("--owner", "ann", "--scope", "root")[0] == 2
    code, output = invoke("--owner", "an n", "--scope", "reward")
    assert code == 2
    assert "--owner" in output


def test_it_is_found_by_the_command_line() -> None:
    (found,) = [point for point in entry_points(group="rlt.commands") if point.name == "keys"]
    assert found.load() is register
