"""The Compose files as data, without Docker: anchors, variables' defaults and `!reset` are resolved here."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = ["ROOT", "VARIABLE", "defaults", "load", "network_of", "raw", "services"]

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::?-(?P<default>[^}]*))?\}")


class _Loader(yaml.SafeLoader):
    """Knows Compose's own tags."""


def _reset(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return None


_Loader.add_constructor("!reset", _reset)
_Loader.add_constructor("!override", _reset)


@cache
def raw(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def load(name: str) -> dict[str, Any]:
    """A file with every variable at its default."""
    text = VARIABLE.sub(lambda found: found["default"] or "", raw(name)).replace("$$", "$")
    loaded: dict[str, Any] = yaml.load(text, Loader=_Loader)
    return loaded


def services(name: str = "docker-compose.yml") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = load(name)["services"]
    return found


def network_of(service: dict[str, Any]) -> frozenset[str]:
    """Networks of a service; none for one that has `network_mode: none`."""
    return frozenset(service.get("networks") or ())


def defaults(name: str) -> dict[str, str]:
    """Every variable of a file with its default."""
    found: dict[str, str] = {}
    for match in VARIABLE.finditer(raw(name)):
        found.setdefault(match["name"], match["default"] or "")
    return found
