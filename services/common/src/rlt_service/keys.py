"""Keys: random tokens of which a server stores only the SHA-256.

One key a line, in a file or (separated by ';') in a variable; `#` starts a comment:

    OWNER  SCOPE[,SCOPE…]  sha256:HEX  [path]  [rate=100/minute]  [items=5000/minute]

`path` marks a key that may also stand in a URL, for callers that can send no header. `rate` and `items` are how many
requests, and how many explanations or samples in them, it may ask for in a second, minute, hour or day; without them
the server's own limits hold.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlt_client.errors import RLTError
from rlt_client.schemas.common import Scope

__all__ = [
    "OWNER_PATTERN",
    "OWNER_WANTED",
    "RATE_PATTERN",
    "RATE_WANTED",
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
OWNER_WANTED = "up to 64 letters, digits and _ . @ + -"

RATE_PATTERN = r"([1-9]\d{0,11})/(second|minute|hour|day)"
RATE_WANTED = "want a number a second, minute, hour or day: 100/minute"

_LINE = re.compile(
    rf"(?P<owner>{OWNER_PATTERN})\s+(?P<scopes>[\w,]+)\s+sha256:(?P<hash>[0-9a-f]{{64}})(?P<options>(\s+\S+)*)"
)
_OPTION = re.compile(rf"path|(?:rate|items)={RATE_PATTERN}")


class BadKeys(RLTError):
    """A line of keys that cannot be read. The message names the place, never the line's text."""


@dataclass(frozen=True, slots=True)
class Key:
    hash: str
    """SHA-256 of the token, 64 hex digits."""
    owner: str
    scopes: frozenset[Scope]
    in_path: bool = False
    rate: str | None = None
    """Requests in a time, such as `100/minute`."""
    items: str | None = None
    """The same of what is in them."""

    @property
    def id(self) -> str:
        """Short public name of the key, for logs."""
        return self.hash[:12]

    def line(self) -> str:
        """This key as a line of a keys file."""
        scopes = ",".join(sorted(self.scopes))
        options = [f"{name}={value}" for name in ("rate", "items") if (value := getattr(self, name))]
        return " ".join([self.owner, scopes, f"sha256:{self.hash}", *["path"] * self.in_path, *options])


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
    options = match["options"].split() if match else []
    if match is None or not all(map(_OPTION.fullmatch, options)) or len(set(_names(options))) < len(options):
        shape = "OWNER SCOPE[,SCOPE] sha256:HEX [path] [rate=100/minute] [items=5000/minute]"
        raise BadKeys(f"{where}: want `{shape}`; `rlt keys create` prints such a line")
    scopes = match["scopes"].split(",")
    unknown = sorted(set(scopes) - set(Scope))
    if unknown:
        raise BadKeys(f"{where}: no such scope: {', '.join(unknown)}; there are {', '.join(Scope)}")
    rates = dict(option.split("=") for option in options if "=" in option)
    return Key(match["hash"], match["owner"], frozenset(map(Scope, scopes)), "path" in options, **rates)


def _names(options: Iterable[str]) -> list[str]:
    return [option.partition("=")[0] for option in options]


class StaticKeys:
    """Keys that never change."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)

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
        self.stores = stores

    async def find(self, token_hash: str) -> Key | None:
        for store in self.stores:
            key = await store.find(token_hash)
            if key is not None:
                return key
        return None
