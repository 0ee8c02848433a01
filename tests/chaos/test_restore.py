"""A backup that is taken while a build runs brings the build back, and it goes on to its exact end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from chaos.checks import Expected, ask, store_wrong, wrong
from chaos.schedule import SHORT
from chaos.stand_in import said
from chaos.world import World
from plugins.backups import backup, names, restore

from rlt_jobs.builds.spec import sample_seed
from rlt_jobs.store.files import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROBLEMS, N, SEED = 300, 4, 5
SAVED_AT = 300  # of 1,200 samples
PATIENCE = 400.0  # a busy machine: half a minute is enough on a quiet one


class Restored(World):
    """Another machine: an empty database and an empty store, filled from a backup before anything starts."""

    def __init__(self, folder: Path, backups: Path) -> None:
        super().__init__(folder, SHORT.programs)
        self._backups = backups
        self.before: list[str] = []
        """What is wrong with it before anything works on it."""

    def _fill_database(self) -> None:
        done = restore(self.database_url, self.disk.store, self._backups)
        assert done.returncode == 0, done.stderr
        self.env = self._settings(0, 0, 0)
        self.before = store_wrong(self)


def test_a_backup_of_a_running_build_is_whole_and_goes_on(tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    with World(tmp_path / "lost", SHORT.programs, held=PROBLEMS - 1) as world:  # its last samples are never made
        build = _submit(world, "main", PROBLEMS)
        _until(lambda: _made(world) >= SAVED_AT)
        done = backup(world.database_url, world.disk.store, backups)
        assert done.returncode == 0, done.stderr
        assert world.query("SELECT state::text FROM builds WHERE id = %s", build) == [("running",)]
        later = _submit(world, "later", 3)  # is lost with everything else that came after the backup

    with Restored(tmp_path / "found", backups) as world:
        assert world.before == []
        assert 0 < _made(world) < PROBLEMS * N
        texts = {(p, s): said(f"Q{p}", sample_seed(SEED, p, s, 0)) for p in range(PROBLEMS) for s in range(N)}
        _until(lambda: _state(world, build) in ("done", "failed"))
        assert wrong(world, Expected(build, "main", texts, bad_rows=0)) == []
        again = _submit(world, "later", 3)
        assert again > later  # nobody finds another build under an id that was noted
        _until(lambda: _state(world, again) == "done")
        assert store_wrong(world) == []


def test_a_store_that_lost_files_says_which_and_gets_them_back(tmp_path: Path) -> None:
    backups = tmp_path / "backups"
    with World(tmp_path / "world", SHORT.programs) as world:
        build = _submit(world, "main", 40)
        _until(lambda: _state(world, build) == "done")
        assert backup(world.database_url, world.disk.store, backups).returncode == 0
        (version,) = world.query("SELECT id FROM versions")[0]
        whole = httpx.get(f"{world.api}/versions/{version}/export", params={"format": "jsonl"}, timeout=60).text
        lost = [row[0] for row in world.query("SELECT uri FROM files WHERE kind = 'compact'")]
        for uri in lost:
            Store(world.disk.store).remove(uri)

        (said_wrong,) = store_wrong(world)
        assert all(uri in said_wrong for uri in lost)
        refused = httpx.get(f"{world.api}/versions/{version}/export", params={"format": "parquet"}, timeout=60)
        assert (refused.status_code, refused.json()["type"]) == (500, "store_damaged")
        report = httpx.get(f"{world.api}/builds/{build}/report", timeout=60)
        assert report.status_code == 200  # scores are in the database

        (name,) = names(backups)
        done = restore(world.database_url, world.disk.store, backups, "--files-only", name)
        assert done.returncode == 0, done.stderr
        assert store_wrong(world) == []
        again = httpx.get(f"{world.api}/versions/{version}/export", params={"format": "jsonl"}, timeout=60)
        assert again.text == whole


def _submit(world: World, dataset: str, problems: int) -> int:
    rows = [{"question": f"Q{index}", "answer": f"A{index}"} for index in range(problems)]
    request = {"dataset": dataset, "problems": rows, "n": N, "seed": SEED}
    return int(ask(world, "POST", "/builds", json=request).json()["id"])


def _made(world: World) -> int:
    return int(world.query("SELECT count(*) FROM samples")[0][0])


def _state(world: World, build: int) -> str:
    return str(world.query("SELECT state::text FROM builds WHERE id = %s", build)[0][0])


def _until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)
