"""Keys of a stack on one machine.

Tokens lie in `keys/NAME.key`, made once; what each server accepts lies in `keys/SERVER.keys` as hashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlt_local.state import StateFolder
from rlt_service.keys import Key, hash_token
from rlt_service.stack_keys import ACCEPTED, ensure_token, replace_file


@dataclass(frozen=True, slots=True)
class StackKeys:
    tokens: dict[str, str]
    """By owner: local, jobs, teacher."""
    files: dict[str, Path]
    """What each server accepts, by server."""


def prepare_keys(folder: StateFolder) -> StackKeys:
    """Make the tokens that are missing, and write what each server accepts."""
    owners = sorted({owner for accepted in ACCEPTED.values() for owner in accepted})
    tokens = {owner: ensure_token(folder.key_file.with_name(f"{owner}.key")) for owner in owners}
    files = {}
    for server, accepted in ACCEPTED.items():
        lines = [Key(hash_token(tokens[owner]), owner, scopes).line() for owner, scopes in accepted.items()]
        files[server] = folder.key_file.with_name(f"{server}.keys")
        replace_file(files[server], "\n".join(lines) + "\n")
    return StackKeys(tokens, files)
