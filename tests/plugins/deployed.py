"""Settings as a container would find them: what a deployment sets must be what a program reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from rlt_jobs.settings import Settings as JobsSettings
from rlt_reward_server.settings import Settings as RewardSettings
from rlt_service.settings import ServerSettings
from rlt_teacher_server.settings import Settings as TeacherSettings

SETTINGS: dict[str, type[ServerSettings]] = {
    "jobs": JobsSettings,
    "reward": RewardSettings,
    "teacher": TeacherSettings,
}

# Read by no settings class: where secrets lie, for every server.
READ_ELSEWHERE = frozenset({"RLT_SECRETS_DIR"})


def unknown_variables(server: str, names: Mapping[str, str]) -> set[str]:
    """`RLT_…` variables of a container that its program does not read."""
    cls = SETTINGS[server]
    prefix = cls.model_config.get("env_prefix") or ""
    fields = {f"{prefix}{field}".upper() for field in cls.model_fields}
    return {name for name in names if name.startswith("RLT_")} - fields - READ_ELSEWHERE


def settings_in(
    patch: pytest.MonkeyPatch, server: str, environment: Mapping[str, str], secrets: Mapping[str, str], folder: Path
) -> ServerSettings:
    """The settings of a server with exactly this environment and these secret files.

    Raises:
        pydantic.ValidationError: they are not settings of this server.
    """
    import os

    for name in list(os.environ):
        if name.startswith("RLT_"):
            patch.delenv(name)
    for name, value in environment.items():
        patch.setenv(name, value)
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in secrets.items():
        (folder / name).write_text(value)
    return SETTINGS[server](_secrets_dir=folder)  # type: ignore[call-arg]  # pydantic-settings' own argument
