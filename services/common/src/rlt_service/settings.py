"""Settings of a server: flags, `RLT_…_` variables and secret files, in this order of precedence.

    class Settings(ServerSettings):
        model_config = SettingsConfigDict(env_prefix="RLT_REWARD_")
        port: int = Field(8002, ge=0, le=65535, description="port; 0 takes a free one")
        student: str = Field(description="name or folder of the student")

    settings = load(Settings, prog="rlt-reward-server")   # RLT_REWARD_STUDENT=… or --student …

A secret file is named like its variable (`rlt_reward_keys`) and lies in `/run/secrets` or `$RLT_SECRETS_DIR`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from rlt_service.hidden import hide, secrets_of, secrets_of_environment
from rlt_service.keys import RATE_PATTERN

__all__ = ["PathList", "ServerSettings", "StrList", "load", "secret_file"]


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


PathList = Annotated[list[Path], NoDecode, BeforeValidator(_split)]
"""Paths separated by commas; the flag may also be repeated."""
StrList = Annotated[list[str], NoDecode, BeforeValidator(_split)]
"""Words separated by commas; the flag may also be repeated."""


class ServerSettings(BaseSettings):
    """What every server can be told. Sub-classes set `env_prefix` and a default `port`, and add their own fields."""

    model_config = SettingsConfigDict(
        env_prefix="RLT_",
        env_ignore_empty=True,  # `RLT_X=` in a compose file means: not given
        extra="ignore",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_show_env_vars=True,
    )

    host: str = Field("127.0.0.1", description="address to listen on; beyond loopback it needs keys")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    keys: str = Field("", description="keys, as the lines of a keys file separated by ';'")
    keys_file: Path | None = Field(None, description="file of keys, one a line, as `rlt keys create` prints them")
    allow_anonymous: bool = Field(False, description="serve callers without a key, on any address, with every scope")
    rate_limit: str | None = Field(
        None,
        pattern=f"^{RATE_PATTERN}$",
        description="requests of one key in a time, such as 100/minute, where its line says no `rate=`; no limit",
    )
    item_limit: str | None = Field(
        None,
        pattern=f"^{RATE_PATTERN}$",
        description="explanations to score or samples to make of one key in a time, where its line says no `items=`; "
        "no limit",
    )
    max_body_bytes: int = Field(64 * 2**20, ge=1, description="largest request body; uploads have a limit of their own")
    allowed_roots: PathList = Field([], description="folders that requests may name paths in, separated by commas")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["json", "console"] = Field("json", description="JSON lines, or columns for people")
    shutdown_grace_s: int = Field(30, ge=0, description="seconds that running requests get after SIGTERM")


S = TypeVar("S", bound=ServerSettings)


def load(settings: type[S], argv: Sequence[str] | None = None, *, prog: str | None = None) -> S:
    """Read the settings of a process. A bad value ends it with one line per value on stderr and exit code 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        loaded = settings(_cli_parse_args=args, _cli_prog_name=prog, _secrets_dir=_secrets_dir())
    except ValidationError as error:
        _stop(prog, _lines(settings, error))
    except SettingsError as error:
        _stop(prog, [str(error)])
    hide([*secrets_of(loaded), *secrets_of_environment()])
    return loaded


def _secrets_dir() -> Path | None:
    """A folder that is missing would be warned about."""
    folder = Path(os.environ.get("RLT_SECRETS_DIR", "/run/secrets"))
    return folder if folder.is_dir() else None


def secret_file(settings: type[ServerSettings], name: str) -> Path | None:
    """The file that may hold this setting, if there is one: named like its variable, in whatever case."""
    folder = _secrets_dir()
    variable = f"{settings.model_config.get('env_prefix') or ''}{name}".lower()
    files = folder.iterdir() if folder else ()
    return next((file for file in files if file.name.lower() == variable and file.is_file()), None)


def _lines(settings: type[ServerSettings], error: ValidationError) -> Iterator[str]:
    for detail in error.errors(include_url=False, include_context=False):
        yield _line(settings, detail)


def _line(settings: type[ServerSettings], detail: ErrorDetails) -> str:
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        return message
    name = str(detail["loc"][0])
    variable = f"{settings.model_config.get('env_prefix') or ''}{name}".upper()
    where = f"--{name.replace('_', '-')} ({variable})"
    return f"{where} is required" if detail["type"] == "missing" else f"{where}: {message}, got {detail['input']!r}"


def _stop(prog: str | None, lines: Iterator[str] | list[str]) -> NoReturn:
    for line in lines:
        sys.stderr.write(f"{prog or Path(sys.argv[0]).name}: error: {line}\n")
    raise SystemExit(2)
