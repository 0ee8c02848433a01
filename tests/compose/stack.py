"""One Compose project of its own: other secrets, ports, volumes and networks than a stack that somebody uses."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from compose.files import ROOT

from rlt_local.ports import free

__all__ = ["Failed", "Stack", "why_not"]

UP_SECONDS = 1800  # images are there; models are made and vLLM starts on processors that others use too
BUILD_SECONDS = 7200  # torch and vLLM are fetched and unpacked once
COMMAND_SECONDS = 600
RECOVERY_SECONDS = 600  # of one container that was killed: a reward server loads and proves its models again

# Everything that is waited for, shorter, so that a killed worker's lease is taken back while one looks.
JOBS_ENV = """RLT_JOBS_LEASE_SECONDS=20
RLT_JOBS_HEARTBEAT_SECONDS=5
RLT_JOBS_REAP_SECONDS=2
RLT_JOBS_RECONCILE_SECONDS=10
RLT_JOBS_FLUSH_SECONDS=1
RLT_JOBS_SHARD_SAMPLES=32
"""


class Failed(Exception):
    """Something was not as it must be."""


def why_not() -> str | None:
    """Why no container can be run here; None if they can."""
    for command in (["docker", "compose", "version"], ["docker", "info", "--format", "{{.ServerVersion}}"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{' '.join(command)}: {error}"
        if done.returncode:
            return f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}"
    return None


class Stack:
    """Args:
    project: name of the Compose project.
    folder: for its secrets and settings.
    """

    def __init__(self, project: str, folder: Path) -> None:
        self.project = project
        self.folder = folder.resolve()
        self.secrets = self.folder / "secrets"
        self.port, self.tls_port = free(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.secrets.mkdir(parents=True, exist_ok=True)
        (self.folder / "jobs.env").write_text(JOBS_ENV)
        self._env = os.environ | {
            "RLT_SECRETS": str(self.secrets),
            "RLT_ENV_DIR": str(self.folder),
            "RLT_PORT": str(self.port),
            "RLT_TLS_PORT": str(self.tls_port),
            "RLT_BACKUPS": str(self.folder / "backups"),
            "COMPOSE_PROJECT_NAME": project,
        }

    @property
    def key(self) -> str:
        return (self.secrets / "rlt.key").read_text().strip()

    def compose(self, *args: str, timeout: float = COMMAND_SECONDS, stdin: str | None = None, log: bool = False) -> str:
        """What `docker compose ARGS` prints.

        Raises:
            Failed: it ended with another status than 0.
        """
        command = ["docker", "compose", *args]
        return _run(command, timeout=timeout, stdin=stdin, env=self._env, cwd=ROOT, log=log)

    def script(self, path: str, *args: str) -> str:
        """What one of the repository's scripts prints. Raises `Failed`."""
        return _run([str(ROOT / path), *args], timeout=UP_SECONDS, stdin=None, env=self._env, cwd=ROOT)

    def tool(self, service: str, *argv: str) -> str:
        """What a command of the profile `tools` prints, in a container of its own, its log too. Raises `Failed`."""
        run = ("--progress", "quiet", "--profile", "tools", "run", "--rm", "-T", service)
        return self.compose(*run, *argv, log=True)

    def docker(self, *args: str, timeout: float = COMMAND_SECONDS, stdin: str | None = None) -> str:
        return _run(["docker", *args], timeout=timeout, stdin=stdin, env=self._env, cwd=ROOT)

    def build(self) -> None:
        self.compose("build", timeout=BUILD_SECONDS)

    def up(self) -> None:
        """Raises `Failed` with the last words of every service that is not as it must be."""
        options = ("--detach", "--wait", "--wait-timeout", str(UP_SECONDS), "--quiet-pull")
        try:
            self.compose("--progress", "quiet", "up", *options, timeout=UP_SECONDS + 60)
        except Failed as failure:
            raise Failed(f"{failure}\n{self.compose('ps', '--all')}\n{self.logs()}") from failure

    def replace(self, service: str) -> None:
        """As an upgrade does: SIGTERM, and a new container in its place. Raises `Failed`."""
        options = ("--force-recreate", "--no-deps", "--detach", "--wait", "--wait-timeout", str(UP_SECONDS))
        self.compose("--progress", "quiet", "up", *options, service, timeout=UP_SECONDS + 60)

    def down(self, *options: str) -> None:
        self.compose("down", *options)

    def exec(self, service: str, *argv: str, stdin: str | None = None) -> str:
        return self.compose("exec", "-T", service, *argv, stdin=stdin)

    def container(self, service: str) -> str:
        """The identifier of a service's one container."""
        return self.compose("ps", "--all", "--quiet", service).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.docker("inspect", self.container(service)))[0]
        return found

    def strike(self, service: str) -> None:
        """SIGKILL to every process of a container at once, as when memory is short; its policy starts it again."""
        before = self.inspect(service)["RestartCount"]
        with suppress(Failed):  # the container may be gone before the command that ended it
            self.docker("exec", self.container(service), "sh", "-c", "kill -9 -1")
        self.until(lambda: self.inspect(service)["RestartCount"] > before, f"{service} to be started again")

    def healthy(self, service: str) -> bool:
        state = self.inspect(service)["State"]
        return bool(state["Status"] == "running" and state["Health"]["Status"] == "healthy")

    def until(self, reached: Callable[[], object], what: str, seconds: float = RECOVERY_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > deadline:
                raise Failed(f"waited {seconds:g} s for {what}\n{self.logs()}")
            time.sleep(0.5)

    def logs(self, *options: str) -> str:
        return self.compose("logs", "--no-color", *(options or ("--tail", "40")))


def _run(
    command: Sequence[str], *, timeout: float, stdin: str | None, env: dict[str, str], cwd: Path, log: bool = False
) -> str:
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if log else subprocess.PIPE,
        text=True,
        timeout=timeout,
        input=stdin,
        env=env,
        cwd=cwd,
        check=False,
    )
    if done.returncode:
        said = f"{done.stdout[-4000:]}{(done.stderr or '')[-4000:]}"
        raise Failed(f"{' '.join(command)} ended with {done.returncode}\n{said}")
    return done.stdout
