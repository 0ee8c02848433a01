"""Keys of a stack: one for its user, and one with a narrow scope for each server that calls another.

Tokens lie in `keys/NAME.key`, made once; what each server accepts lies in `keys/SERVER.keys` as hashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlt_client.schemas.common import Scope
from rlt_local.state import StateFolder, replace_file
from rlt_service.keys import Key, create_token, hash_token

# Whose token it is, by the server that accepts it, with what it may do there.
ACCEPTED: dict[str, dict[str, frozenset[Scope]]] = {
    "teacher": {"local": frozenset(Scope), "jobs": frozenset({Scope.explain})},
    "reward": {"local": frozenset(Scope), "jobs": frozenset({Scope.reward}), "teacher": frozenset({Scope.reward})},
    "jobs": {"local": frozenset(Scope)},
}


@dataclass(frozen=True, slots=True)
class StackKeys:
    tokens: dict[str, str]
    """By owner: local, jobs, teacher."""
    files: dict[str, Path]
    """What each server accepts, by server."""


def prepare_keys(folder: StateFolder) -> StackKeys:
    """Make the tokens that are missing, and write what each server accepts."""
    owners = sorted({owner for accepted in ACCEPTED.values() for owner in accepted})
    tokens = {owner: _token(folder.key_file.with_name(f"{owner}.key")) for owner in owners}
    files = {}
    for server, accepted in ACCEPTED.items():
        lines = [Key(hash_token(tokens[owner]), owner, scopes).line() for owner, scopes in accepted.items()]
        files[server] = folder.key_file.with_name(f"{server}.keys")
        replace_file(files[server], "\n".join(lines) + "\n")
    return StackKeys(tokens, files)


def _token(path: Path) -> str:
    if not path.exists():
        replace_file(path, create_token() + "\n")
    return path.read_text(encoding="utf-8").strip()
