"""docs/paper-to-code.md names things that exist, and gives the values that the configurations give."""

from __future__ import annotations

import pkgutil
import re
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from rlt_client.schemas.reward import SpecRequest
from rlt_reward_server.reward.rlt import RLT
from rlt_trainer import config as configs
from rlt_trainer.config.base import Section, Stage

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "paper-to-code.md"
TEXT: Final = PAGE.read_text(encoding="utf-8")
FOLDERS: Final = r"docs|reward_server|services|teacher_server|tests|trainer"
PAPER: Final = ROOT / "trainer" / "configs" / "paper"
STAGES: Final[dict[str, tuple[type[Stage], Path | None]]] = {
    "sft": (configs.SFTConfig, PAPER / "teacher_sft.toml"),
    "rl": (configs.RLConfig, PAPER / "teacher_rl.toml"),
    "distill": (configs.DistillConfig, None),
    "evaluate": (configs.EvaluateConfig, PAPER / "evaluate.toml"),
    "student_7b": (configs.DistillConfig, PAPER / "student_7b.toml"),
    "student_32b": (configs.DistillConfig, PAPER / "student_32b.toml"),
    "student_rl": (configs.RLConfig, PAPER / "student_rl.toml"),
}
"""What stands before a key: the command, and the file that a value beside it is that of."""

LINKS: Final = sorted(set(re.findall(r"\]\((?!http)([^)#]+)", TEXT)))
PATHS: Final = sorted(set(re.findall(rf"`((?:{FOLDERS})/[^` ]+)`", TEXT)))
NAMES: Final = sorted(set(re.findall(r"`(rlt_\w+(?:\.\w+)+)`", TEXT)))
KEYS: Final = sorted(set(re.findall(rf"`({'|'.join(STAGES)}): ([\w.]+)`", TEXT)))
VALUES: Final = re.findall(rf"^\|.*\| `({'|'.join(STAGES)}): ([\w.]+)` \| ([^\s–]+) \|$", TEXT, re.MULTILINE)
COEFFICIENTS: Final = re.findall(r"^\| `(\w+)` \| [^|]*\| (\S+) \|$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("link", LINKS)
def test_every_link_leads_somewhere(link: str) -> None:
    assert (PAGE.parent / link).exists()


@pytest.mark.parametrize("path", PATHS)
def test_every_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", NAMES)
def test_every_name_can_be_imported(name: str) -> None:
    pkgutil.resolve_name(name)


@pytest.mark.parametrize(("stage", "key"), KEYS, ids=[": ".join(key) for key in KEYS])
def test_every_key_is_a_field(stage: str, key: str) -> None:
    _field(STAGES[stage][0], key.split("."))


@pytest.mark.parametrize(("stage", "key", "value"), VALUES, ids=[": ".join(row[:2]) for row in VALUES])
def test_the_configurations_give_the_values_of_the_tables(stage: str, key: str, value: str) -> None:
    kind, file = STAGES[stage]
    assert file is not None
    given = _value(kind, tomllib.loads(file.read_text(encoding="utf-8")), key.split("."))
    assert given == (_number(value) if isinstance(given, int | float) else value)


@pytest.mark.parametrize(("name", "value"), COEFFICIENTS, ids=lambda each: each)
def test_the_preset_has_the_coefficients_of_the_table(name: str, value: str) -> None:
    spec = RLT().resolve(SpecRequest.model_validate({"preset": "rlt"})).model_dump(by_alias=True)
    assert spec[name] == (value if isinstance(spec[name], str) else _number(value))


def test_the_page_was_read() -> None:
    """A page that is written otherwise would be checked for nothing."""
    assert min(len(LINKS), len(PATHS)) >= 5
    assert len(NAMES) >= 15
    assert len(KEYS) >= 30
    assert len(VALUES) >= 45
    assert len(COEFFICIENTS) == 7


def _number(text: str) -> float:
    return float({"true": "1", "false": "0"}.get(text, text))


def _field(model: type[Stage] | type[Section], path: list[str]) -> Any:
    """The field's default. Raises `KeyError`, and `AssertionError` for a key below a value that has none."""
    first, rest = path[0], path[1:]
    field = model.model_fields[first]
    if not rest:
        return field.get_default()
    if (section := _section(field.annotation)) is not None:
        return _field(section, rest)
    assert first == "spec", f"nothing is below {first}"
    [coefficient] = rest
    assert coefficient in {known.alias or name for name, known in SpecRequest.model_fields.items()}
    return field.get_default().get(coefficient)


def _section(annotation: Any) -> type[Section] | None:
    """The table that a field is, be it optional."""
    kinds = getattr(annotation, "__args__", (annotation,))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _value(model: type[Stage], table: dict[str, Any], path: list[str]) -> Any:
    """What the file says, and for the rest the default."""
    default = _field(model, path)
    for key in path:
        if key not in table:
            return default
        table = table[key]
    return table
