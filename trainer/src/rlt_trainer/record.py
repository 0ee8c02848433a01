"""What a run was told, beside what it made: `<output>/config.toml`, which `--config` takes."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rlt_trainer.config import Stage
from rlt_trainer.config.base import read
from rlt_trainer.disk import write_whole
from rlt_trainer.errors import BadConfig
from rlt_trainer.planning import as_toml

__all__ = ["keep"]

log = logging.getLogger(__name__)

FILE: Final = "config.toml"
_RESUME: Final = "checkpoints.resume"  # says nothing of what is made
_UNSET: Final = "unset"


def keep(config: Stage, *, goes_on: bool) -> None:
    """Write the configuration down; of a run that goes on, warn of what it was told otherwise before.

    Raises:
        BadConfig: nothing can be written to the output.
    """
    file, told = config.output / FILE, as_toml(config)
    if goes_on and (changed := _changed(file, tomllib.loads(told))):
        log.warning("goes on with other settings than before: %s", "; ".join(changed))
    try:
        config.output.mkdir(parents=True, exist_ok=True)
        write_whole(file, told)
    except OSError as error:
        raise BadConfig(f"output {config.output}: {error}") from error


def _changed(file: Path, now: Mapping[str, Any]) -> list[str]:
    try:
        before = dict(_flat(read(file)))
    except (OSError, tomllib.TOMLDecodeError):  # of a run that wrote none
        return []
    after = dict(_flat(now))
    names = [name for name in sorted(before | after) if name != _RESUME and before.get(name) != after.get(name)]
    return [f"{name} {before.get(name, _UNSET)} → {after.get(name, _UNSET)}" for name in names]


def _flat(table: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value
