"""What every chapter of the demo needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlt_client.aio import AsyncRewardClient, AsyncTeacherClient
from rlt_client.jobs import AsyncJobsClient
from rlt_local.demo.narrator import Narrator
from rlt_local.demo.problems import TracedProblem

__all__ = ["Scene"]


@dataclass(frozen=True, slots=True)
class Scene:
    tell: Narrator
    teacher: AsyncTeacherClient
    reward: AsyncRewardClient
    jobs: AsyncJobsClient
    urls: dict[str, str]
    state: str
    """The stack's folder, as it is typed in commands."""
    out: Path
    problems: list[dict[str, str]]
    problems_file: Path
    traced: list[TracedProblem]

    @property
    def first(self) -> dict[str, str]:
        return self.problems[0]

    def curl(self, service: str, path: str, body: str = "") -> str:
        sent = f" --json '{body}'" if body else ""
        return f"curl -s '{self.urls[service]}{path}' -H \"Authorization: Bearer $KEY\"{sent}"
