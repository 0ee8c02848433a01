"""`rlt-trainer` as its users call it: a process, a configuration of this package and one of the piece."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rlt_client.errors import RLTError

__all__ = ["CONFIGS", "Log", "StageFailed", "toml"]

CONFIGS: Final = Path(__file__).parent / "configs"
_ROOT: Final = Path(__file__).resolve().parents[3]
_LAST_WORDS: Final = 2000  # characters of a failed command's log


class StageFailed(RLTError):
    """A command ended with an error; the message holds its last words."""


@dataclass(slots=True)
class Log:
    """The commands that made a piece, each with the configuration that it was given, and their seconds."""

    work: Path
    env: Mapping[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def train(self, stage: str, template: str, folder: Path, table: Mapping[str, Any]) -> None:
        """`rlt-trainer STAGE` into `folder`, or nothing where it ended well before. Raises `StageFailed`."""
        done, own = folder / "done", folder / "config.toml"
        words = ["rlt-trainer", stage, "--config", str(CONFIGS / f"{template}.toml"), "--config", str(own)]
        self.add(f"{' '.join(words)}  # {json.dumps(table)}")
        if not done.exists():
            folder.mkdir(parents=True, exist_ok=True)
            own.write_text(toml({**table, "output": str(folder)}), encoding="utf-8")
            began = time.monotonic()
            self._run(words, folder)
            done.write_text(f"{time.monotonic() - began:.1f}", encoding="utf-8")
        self.seconds[f"{stage} {folder.name}"] = float(done.read_text(encoding="utf-8"))

    def _run(self, words: list[str], folder: Path) -> None:
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            program = Path(sys.executable).with_name(words[0])
            ended = subprocess.run(
                [program, *words[1:]], stdout=log, stderr=subprocess.STDOUT, env=_environment(self.env), check=False
            )
        if ended.returncode:
            last = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:]
            raise StageFailed(f"{' '.join(words)} ended with {ended.returncode}; its log ends with\n{last}")

    def add(self, command: str) -> None:
        """Keeps a command, without folders of this machine."""
        for path, name in ((self.work, "WORK"), (CONFIGS, "configs"), (_ROOT, "REPOSITORY")):
            command = command.replace(str(path), name)
        self.commands.append(command)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """One thread for each process: they share the cores, and small models are slower on more."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **more}


def toml(table: Mapping[str, Any]) -> str:
    """TOML of nested tables; strings, numbers, booleans and lists of them are spelt as JSON spells them."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    return "\n".join([*lines, *_tables(table, ""), ""])


def _tables(table: Mapping[str, Any], above: str) -> list[str]:
    lines: list[str] = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            name = f"{above}{key}"
            lines += ["", f"[{name}]"]
            lines += [f"{inner} = {json.dumps(each)}" for inner, each in value.items() if not isinstance(each, Mapping)]
            lines += _tables(value, f"{name}.")
    return lines
