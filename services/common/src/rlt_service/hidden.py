"""The secrets that this process holds: no line, refusal or span may contain one, whatever a library says.

`load` hides those of the settings and of the environment, and what is read from a rotated file is hidden as it comes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr
from pydantic_settings import BaseSettings

__all__ = ["hide", "secrets_of", "secrets_of_environment", "without"]

SHORTEST: Final = 8  # a shorter one would be found in innocent words, and is no secret for long
ADDRESS: Final = re.compile(r"\w[\w+.-]*://\S+@\S+")
VARIABLE: Final = re.compile(r"(SECRET|PASSWORD|PASSWD|TOKEN|[A-Z]_KEY)$|SECRET_ACCESS_KEY|^OTEL_.*HEADERS$")
"""Names under which programs are given secrets."""

_hidden: set[str] = set()
_pattern: re.Pattern[str] | None = None


def hide(secrets: Iterable[str]) -> None:
    """Replace these from now on, for the life of the process."""
    global _pattern
    new = {secret for secret in secrets if len(secret) >= SHORTEST} - _hidden
    if new:
        _hidden.update(new)
        longest_first = sorted(_hidden, key=len, reverse=True)
        _pattern = re.compile("|".join(map(re.escape, longest_first)))


def without(text: str) -> str:
    """The text with each hidden secret replaced by `[redacted]`."""
    return text if _pattern is None else _pattern.sub("[redacted]", text)


def secrets_of(settings: BaseSettings) -> Iterator[str]:
    """Secret fields, and the passwords in addresses."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            yield value.get_secret_value().strip()
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and ADDRESS.fullmatch(text):
                yield from _password(text)


def _password(address: str) -> Iterator[str]:
    """As it stands in the address, and as it is."""
    password = urlsplit(address).password
    if password:
        yield password
        yield unquote(password)


def secrets_of_environment() -> Iterator[str]:
    """Paths are no secrets, and neither is what says that there is none."""
    for name, value in os.environ.items():
        if VARIABLE.search(name) and not value.startswith(("/", "~", "./")):
            yield value
