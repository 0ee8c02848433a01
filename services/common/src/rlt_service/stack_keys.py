"""Keys of a whole stack: one for its user, and one with a narrow scope for each server that calls another."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rlt_client.schemas.common import Scope
from rlt_service.keys import Key, create_token, hash_token, parse_keys

__all__ = ["ACCEPTED", "USER", "accept", "ensure_token", "replace_file"]

USER = "local"

ACCEPTED: dict[str, dict[str, frozenset[Scope]]] = {
    "teacher": {USER: frozenset(Scope), "jobs": frozenset({Scope.explain})},
    "reward": {USER: frozenset(Scope), "jobs": frozenset({Scope.reward}), "teacher": frozenset({Scope.reward})},
    "jobs": {USER: frozenset(Scope)},
}
"""Whose token it is, by the server that accepts it, with what it may do there."""


def ensure_token(path: Path) -> str:
    """The token in a file, made if there is none."""
    if not path.exists():
        replace_file(path, create_token() + "\n")
    return path.read_text(encoding="utf-8").strip()


def accept(path: Path, server: str, tokens: dict[str, str]) -> bool:
    """Give a keys file the lines of `tokens`, by owner, that it lacks; whether it lacked any. Others' lines stay.

    Raises:
        BadKeys: a line of the file cannot be read.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    there = {key.hash for key in parse_keys(text, f"keys file {path}")}
    keys = [Key(hash_token(token), owner, ACCEPTED[server][owner]) for owner, token in tokens.items()]
    lacking = [key.line() for key in keys if key.hash not in there]
    if lacking:
        replace_file(path, "\n".join([*text.splitlines(), *lacking]) + "\n")
    return bool(lacking)


def replace_file(path: Path, text: str) -> None:
    """Write a file, readable by its owner only, so that readers see the old text or the new one and never a part."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)
