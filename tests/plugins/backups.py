"""The scripts that save and bring back a database and a store, run as their containers run them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from rlt_local.databases import _postgres

__all__ = ["backup", "names", "restore"]

SCRIPTS = Path(__file__).parents[2] / "k8s" / "components" / "backup"


def backup(url: str, store: Path | None, backups: Path, *, keep: int = 14) -> subprocess.CompletedProcess[str]:
    return _run("backup.sh", url, store, backups, KEEP=str(keep))


def restore(url: str, store: Path | None, backups: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return _run("restore.sh", url, store, backups, *args)


def names(backups: Path) -> list[str]:
    return sorted(path.name for path in backups.glob("20*"))


def _run(
    script: str, url: str, store: Path | None, backups: Path, *args: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PATH": f"{_postgres('pg_dump').parent}:{os.environ['PATH']}",
        "RLT_JOBS_DATABASE_URL": url,
        "STORE": str(store or ""),
        "BACKUPS": str(backups),
        **variables,
    }
    argv = ["bash", str(SCRIPTS / script), *args]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)
