"""`python -m rlt_service.secrets FOLDER`: have what is missing of a stack's secrets made. What is there stays.

A folder for each service, which is mounted as its /run/secrets and holds nothing of the others:

    rlt.key                        the user's key, for every server
    reward/    rlt_reward_keys     what the reward server accepts, as hashes
    teacher/   rlt_teacher_keys, rlt_teacher_reward_key
    jobs/      rlt_jobs_keys, rlt_jobs_teacher_key, rlt_jobs_reward_key, rlt_jobs_database_url, rlt_jobs_redis_url,
               aws_credentials
    postgres/  superuser_password, rlt_password
    redis/     password, redis.conf
    s3/        user, password      of the stack's own object store, which aws_credentials open
    grafana/   admin_password
    proxy/     room for a certificate of one's own

FOLDER itself is for its owner only. The files in it can be read by everybody, since each service runs as a user of its
own, and sees the inside of its folder without the way that leads there. A key that was deleted is made anew, and the
old one stays valid until its line is taken out of the keys files.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from rlt_client.errors import RLTError
from rlt_service.stack_keys import ACCEPTED, USER, accept, ensure_token, replace_file

__all__ = ["main", "prepare"]

SERVICES = ("reward", "teacher", "jobs", "postgres", "redis", "s3", "grafana", "proxy")
DATABASE = "rlt"  # the platform's role in Postgres, and its database


def prepare(folder: Path, *, postgres: str = "postgres:5432", redis: str = "redis:6379") -> list[str]:
    """The names of the files that were made or grew.

    Args:
        postgres, redis: where the jobs service finds them, HOST:PORT.

    Raises:
        BadKeys: a keys file that is there cannot be read.
        OSError: the folder cannot be written.
    """
    for name in SERVICES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    before = _times(folder)
    _keys(folder)
    _databases(folder, postgres, redis)
    _profiles(folder)
    _hand_over(folder)
    return sorted(str(path.relative_to(folder)) for path, time in _times(folder).items() if before.get(path) != time)


def _times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def _keys(folder: Path) -> None:
    """Each server's line for each caller; a caller has another token for each server."""
    for server, owners in ACCEPTED.items():
        for owner in owners:
            file = folder / "rlt.key" if owner == USER else folder / owner / f"rlt_{owner}_{server}_key"
            accept(folder / server / f"rlt_{server}_keys", server, {owner: ensure_token(file)})


def _databases(folder: Path, postgres: str, redis: str) -> None:
    _ensure(folder / "postgres" / "superuser_password", secrets.token_hex(32))
    of_rlt = _ensure(folder / "postgres" / "rlt_password", secrets.token_hex(32))
    url = f"postgresql+psycopg://{DATABASE}:{of_rlt}@{postgres}/{DATABASE}"
    _ensure(folder / "jobs" / "rlt_jobs_database_url", url)
    of_redis = _ensure(folder / "redis" / "password", secrets.token_hex(32))
    _ensure(folder / "redis" / "redis.conf", f"requirepass {of_redis}")
    _ensure(folder / "jobs" / "rlt_jobs_redis_url", f"redis://:{of_redis}@{redis}/0")


def _profiles(folder: Path) -> None:
    """Of what only some stacks run."""
    user = _ensure(folder / "s3" / "user", secrets.token_hex(10))
    password = _ensure(folder / "s3" / "password", secrets.token_hex(32))
    credentials = f"[default]\naws_access_key_id = {user}\naws_secret_access_key = {password}"
    _ensure(folder / "jobs" / "aws_credentials", credentials)
    _ensure(folder / "grafana" / "admin_password", secrets.token_hex(32))


def _ensure(path: Path, text: str) -> str:
    """The line in a file, `text` if there was none."""
    if not path.exists():
        replace_file(path, text + "\n")
    return path.read_text(encoding="utf-8").strip()


def _hand_over(folder: Path) -> None:
    """To the folder's owner, where another user (a container's root) made it."""
    folder.chmod(0o700)
    owner = folder.stat()
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.chown(path, owner.st_uid, owner.st_gid)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rlt_service.secrets", description="Make what is missing of a stack's secrets."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--postgres", default="postgres:5432", metavar="HOST:PORT", help="(postgres:5432)")
    parser.add_argument("--redis", default="redis:6379", metavar="HOST:PORT", help="(redis:6379)")
    asked = parser.parse_args(argv)
    try:
        made = prepare(asked.folder, postgres=asked.postgres, redis=asked.redis)
    except (RLTError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: error: {error}\n")
        return 1
    sys.stdout.write("".join(f"made {name}\n" for name in made) or "every secret is there\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
