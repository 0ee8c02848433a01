"""Requests made of command-line values; a value that the schema refuses is a usage error (exit code 2)."""

from __future__ import annotations

from typing import Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

__all__ = ["make", "parse_bounds", "parse_mapping", "parse_pairs"]

M = TypeVar("M", bound=BaseModel)


def make(schema: type[M], **values: Any) -> M:
    """Values that are None are left out, so that the schema's defaults hold."""
    try:
        return schema.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise typer.BadParameter("; ".join(_line(each) for each in error.errors(include_url=False))) from None


def parse_mapping(text: str | None) -> dict[str, str] | None:
    """`sigmoid:0.5:3` as the fields of a mapping; what is left out is the schema's."""
    if text is None:
        return None
    names, values = ("kind", "scale", "offset"), text.split(":")
    if len(values) > len(names):
        raise typer.BadParameter(f"--map {text}: want KIND, KIND:SCALE or KIND:SCALE:OFFSET")
    return dict(zip(names, values, strict=False))


def parse_pairs(option: str, pairs: list[str] | None) -> dict[str, str]:
    """`["question=prompt"]` as a dictionary. Raises `typer.BadParameter`."""
    found = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise typer.BadParameter(f"{option} {pair}: want NAME=VALUE")
        found[name] = value
    return found


def parse_bounds(option: str, pairs: list[str] | None) -> dict[str, float]:
    """`["reward=-1.5"]` as numbers. Raises `typer.BadParameter`."""
    try:
        return {name: float(value) for name, value in parse_pairs(option, pairs).items()}
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None


def _line(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"] if not str(part)[:1].isupper())
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
