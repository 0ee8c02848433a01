"""One JSON file for each finished piece: what was measured, by which commands, where. None is made again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rlt_bench.measure import machine
from rlt_trainer.tiny.folders import locked

__all__ = ["Records"]

_VERSIONS: Final = ("trl", "peft", "accelerate", "rlt-trainer")


class Records:
    """Args:
    folder: `<task>-<corpus>/seed-<n>/<piece>.json` lies in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def made_once(self, piece: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record of `piece`, made if there is none; of several processes that want it, one makes it."""
        path = self.folder / f"{piece}.json"
        if not path.exists():
            with locked(path.with_suffix(".lock")):
                if not path.exists():
                    _write(path, {"piece": piece, **make()})
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def find(self, piece: str) -> dict[str, Any] | None:
        """None where it was not made yet."""
        path = self.folder / f"{piece}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def all(self, pattern: str) -> Iterator[dict[str, Any]]:
        """Those whose path below the folder matches, in order."""
        for path in sorted(self.folder.glob(f"{pattern}.json")):
            yield json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, record: dict[str, Any]) -> None:
    where = machine() | {name: version(name) for name in _VERSIONS}
    whole = record | {"when": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": where}
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.rename(path)
