"""Keys: random tokens of which a server stores only the SHA-256.

One key a line, in a file or (separated by ';') in a variable; `#` starts a comment:

    OWNER  SCOPE[,SCOPE…]  sha256:HEX  [path]

`path` marks a key that may also stand in a URL, for callers that can send no header.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlt_client.errors import RLTError
from rlt_client.schemas.common import Scope

__all__ = [
    "OWNER_PATTERN",
    "TOKEN_PATTERN",
    "BadKeys",
    "ChainedKeys",
    "Key",
    "KeyStore",
    "StaticKeys",
    "create_token",
    "hash_token",
    "parse_keys",
]

TOKEN_PATTERN = r"rlt_[a-z2-7]{52}"  # noqa: S105 the shape of tokens, not one
"""256 random bits in base32: nothing else in a log looks like it."""

OWNER_PATTERN = r"[\w.@+-]{1,64}"

_LINE = re.compile(
    rf"(?P<owner>{OWNER_PATTERN})\s+(?P<scopes>[\w,]+)\s+sha256:(?P<hash>[0-9a-f]{{64}})(?P<path>\s+path)?"
)


class BadKeys(RLTError):
    """A line of keys that cannot be read. The message names the place, never the line's text."""


@dataclass(frozen=True, slots=True)
class Key:
    hash: str
    """SHA-256 of the token, 64 hex digits."""
    owner: str
    scopes: frozenset[Scope]
    in_path: bool = False

    @property
    def id(self) -> str:
        """Short public name of the key, for logs."""
        return self.hash[:12]

    def line(self) -> str:
        """This key as a line of a keys file."""
        scopes = ",".join(sorted(self.scopes))
        return f"{self.owner} {scopes} sha256:{self.hash}" + (" path" if self.in_path else "")


class KeyStore(Protocol):
    """Where keys are looked up."""

    async def find(self, token_hash: str) -> Key | None:
        """The key with this hash (SHA-256 of the token, hex), or None."""


def create_token() -> str:
    return "rlt_" + base64.b32encode(secrets.token_bytes(32)).decode().rstrip("=").lower()


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def parse_keys(text: str, source: str) -> list[Key]:
    """The keys in `text`. Raises `BadKeys` that names `source` and the line."""
    keys = []
    for number, line in enumerate(text.replace(";", "\n").splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if content:
            keys.append(_parse_line(content, f"{source}, line {number}"))
    return keys


def _parse_line(line: str, where: str) -> Key:
    match = _LINE.fullmatch(line)
    if match is None:
        raise BadKeys(f"{where}: want `OWNER SCOPE[,SCOPE] sha256:HEX [path]`; `rlt keys create` prints such a line")
    scopes = match["scopes"].split(",")
    unknown = sorted(set(scopes) - set(Scope))
    if unknown:
        raise BadKeys(f"{where}: no such scope: {', '.join(unknown)}; there are {', '.join(Scope)}")
    return Key(match["hash"], match["owner"], frozenset(map(Scope, scopes)), in_path=match["path"] is not None)


class StaticKeys:
    """Keys that were read once, at start."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def read(cls, inline: str, file: Path | None) -> StaticKeys:
        """Keys of a variable and of a file. Raises `BadKeys`, also for a file that cannot be read."""
        keys = parse_keys(inline, "keys")
        if file is not None:
            try:
                keys += parse_keys(file.read_text(encoding="utf-8"), f"keys file {file}")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
                raise BadKeys(f"keys file {file}: {reason}") from error
        return cls(keys)

    def __len__(self) -> int:
        return len(self._keys)

    async def find(self, token_hash: str) -> Key | None:
        """Compares with every key, so that the time tells nothing about which one matched."""
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.hash, token_hash):
                found = key
        return found


class ChainedKeys:
    """Asks several stores in turn."""

    def __init__(self, stores: Sequence[KeyStore]) -> None:
        self._stores = stores

    async def find(self, token_hash: str) -> Key | None:
        for store in self._stores:
            key = await store.find(token_hash)
            if key is not None:
                return key
        return None
