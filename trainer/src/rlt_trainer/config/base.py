"""Reading a configuration: TOML files in the order they are named, then flags, each overriding what came before.

config, dry_run = load(SFTConfig, ["--config", "teacher_sft.toml", "--seed", "1"], prog="rlt-trainer sft")
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

__all__ = ["Section", "Stage", "load"]


class Section(BaseModel):
    """A table of a configuration. A key that nothing reads is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(BaseSettings):
    """What every command is told. Environment variables are not read: a run is what its files and flags say."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    output: Path = Field(description="folder of the run: checkpoints, logs, the finished model")
    seed: int = Field(0, ge=0, lt=2**31, description="of data order, dropout and sampling")

    @classmethod
    def settings_customise_sources(  # type: ignore[override]  # pydantic passes all of them by name
        cls, *_: Any, init_settings: PydanticBaseSettingsSource, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


S = TypeVar("S", bound=Stage)


def load(stage: type[S], argv: Sequence[str], *, prog: str) -> tuple[S, bool]:
    """(the configuration, whether only to print it: `--dry-run`).

    A bad value ends the process with one line for each on stderr and exit code 2.
    """
    parser = argparse.ArgumentParser(prog=prog, description=stage.__doc__)
    parser.add_argument("--config", type=Path, action="append", default=[], help="TOML file; later ones override")
    dry = "print the whole configuration and what memory it needs, and stop"
    parser.add_argument("--dry-run", action="store_true", help=dry)
    flags: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
        stage, root_parser=parser, cli_parse_args=False
    )
    known = parser.parse_args(list(argv))
    try:
        given = _merged(read(path) for path in known.config)
        told = flags(parsed_args={k: v for k, v in vars(known).items() if k not in ("config", "dry_run")})()
        return stage(**_merged([given, told])), known.dry_run
    except ValidationError as error:
        _stop(prog, [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()])
    except (SettingsError, OSError, tomllib.TOMLDecodeError) as error:
        _stop(prog, [str(error)])


def read(path: Path) -> dict[str, Any]:
    """Raises `OSError`, and `tomllib.TOMLDecodeError` with the file's name."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise tomllib.TOMLDecodeError(f"{path}: {error}") from error


def _merged(tables: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for table in tables:
        _merge(whole, table)
    return whole


def _merge(into: dict[str, Any], table: Mapping[str, Any]) -> None:
    for key, value in table.items():
        mine = into.get(key)
        if isinstance(mine, dict) and isinstance(value, Mapping):
            _merge(mine, value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _stop(prog: str, lines: Sequence[str]) -> NoReturn:
    sys.stderr.write("".join(f"{prog}: {line}\n" for line in lines))
    sys.exit(2)
