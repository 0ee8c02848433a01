"""Reading a configuration: TOML files in the order they are named, then flags, each overriding what came before.

config, dry_run = load(SFTConfig, ["--config", "teacher_sft.toml", "--seed", "1"], prog="rlt-trainer sft")
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

__all__ = ["Section", "Stage", "load", "read"]


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
        cli_parse_none_str="null",
    )

    output: Path = Field(description="folder of the run: checkpoints, logs, the finished model")
    seed: int = Field(0, ge=0, lt=2**31, description="of data order, dropout and sampling")

    @classmethod
    def settings_customise_sources(  # type: ignore[override]  # pydantic passes all of them by name
        cls, *_: Any, init_settings: PydanticBaseSettingsSource, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


S = TypeVar("S", bound=Stage)


class _Parser(argparse.ArgumentParser):
    """One line for a wrong flag: the usage of some commands fills a screen."""

    def error(self, message: str) -> NoReturn:
        _stop(self.prog, [message])

    def parse_whole(self, argv: Sequence[str]) -> argparse.Namespace:
        known, unknown = self.parse_known_args(list(argv))
        wrong = [word for word in unknown if word.startswith("--")] or unknown[:1]
        if wrong:
            flags = list(self._option_string_actions)
            _stop(self.prog, [f"no such argument: {word}{_meant(word.partition('=')[0], flags)}" for word in wrong])
        return known


def load(stage: type[S], argv: Sequence[str], *, prog: str) -> tuple[S, int | None]:
    """(the configuration, for how many processes it shall only be printed: `--dry-run`; 0 for as many as there are).

    What cannot be read ends the process with a line for each wrong value on stderr and exit code 2.
    """
    parser = _parser(stage, prog)
    flags: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
        stage, root_parser=parser, cli_parse_args=False, parse_args_method=_Parser.parse_whole
    )
    known = vars(parser.parse_whole(argv))
    files, dry_run = known.pop("config"), known.pop("dry_run")
    try:
        given = [read(path) for path in files]
        told = flags(parsed_args=known)()
        return stage(**_merged([*given, told])), dry_run
    except ValidationError as error:
        _stop(prog, [_line(each, stage) for each in error.errors()])
    except (
        SettingsError,
        OSError,
        ValueError,
    ) as error:  # a TOMLDecodeError and text that is not UTF-8 are ValueErrors
        _stop(prog, [str(error)])


def read(path: Path) -> dict[str, Any]:
    """Raises `OSError`, and `tomllib.TOMLDecodeError` with the file's name."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of tomllib, or of text that is not UTF-8
        raise tomllib.TOMLDecodeError(f"{path}: {error}") from error


def _parser(stage: type[Stage], prog: str) -> _Parser:
    note = "Flags override files, and the word null unsets what a file says (--model.lora null)."
    parser = _Parser(prog=prog, description=stage.__doc__, epilog=note, allow_abbrev=False)
    parser.add_argument(
        "--config", type=Path, action="append", default=[], metavar="FILE", help="TOML; later ones override"
    )
    parser.add_argument(
        "--dry-run",
        type=int,
        nargs="?",
        const=0,
        metavar="PROCESSES",
        help="print the whole configuration and what memory it needs, for that many processes, and stop",
    )
    return parser


def _merged(tables: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
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


def _line(error: ErrorDetails, stage: type[Stage]) -> str:
    place = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"no such key: {place}{_meant(place, list(_keys(stage)))}"
    if error["type"] == "missing":
        flag = f"--{place.replace('_', '-')}"
        table = any(key.startswith(f"{place}.") for key in _keys(stage))
        return f"{place} is needed: " + (f"a table [{place}], or {flag}.…" if table else f"in a file, or as {flag}")
    said = error["msg"].removeprefix("Value error, ")
    return f"{place}: {said}" if place else said


def _keys(model: type[BaseModel], before: str = "") -> Iterable[str]:
    for name, field in model.model_fields.items():
        yield before + (field.alias or name)
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{before}{name}.")


def _meant(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _stop(prog: str, lines: Sequence[str]) -> NoReturn:
    sys.stderr.write("".join(f"{prog}: {line}\n" for line in lines))
    sys.stderr.write(f"{prog} --help says what there is\n")
    sys.exit(2)
