"""A checkpoint counts when all of it is on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlt_trainer import checkpoints
from rlt_trainer.errors import BadConfig


@pytest.fixture
def written(tmp_path: Path) -> Callable[[int], Path]:
    def write(step: int) -> Path:
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "reference").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "reference" / "model.safetensors").write_bytes(b"more weights")
        checkpoints.seal(folder, {"step": step})
        return folder

    return write


Written = Callable[[int], Path]


def test_the_mark_tells_the_facts_and_every_file(written: Written) -> None:
    folder = written(3)
    assert checkpoints.sealed(folder) == {
        "step": 3,
        "files": {"model.safetensors": 7, "reference/model.safetensors": 12},
    }
    assert not list(folder.glob(".*"))


def cut(folder: Path) -> None:
    (folder / "reference" / "model.safetensors").write_bytes(b"more")


def lose(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def unseal(folder: Path) -> None:
    (folder / checkpoints.MARK).unlink()


def break_mark(folder: Path) -> None:
    (folder / checkpoints.MARK).write_text('{"step": 3')


def empty_mark(folder: Path) -> None:
    (folder / checkpoints.MARK).write_text(json.dumps({"step": 3}))


@pytest.mark.parametrize("damage", [cut, lose, unseal, break_mark, empty_mark])
def test_a_damaged_one_is_passed_over_and_removed(damage: Callable[[Path], None], written: Written) -> None:
    older, newer = written(9), written(10)
    damage(newer)
    assert checkpoints.newest(newer.parent) == older
    assert checkpoints.starting_point(newer.parent, resume=True) == older
    assert not newer.exists()


def test_steps_are_numbers(written: Written) -> None:
    folders = [written(step) for step in (2, 10, 9)]
    assert checkpoints.newest(folders[0].parent) == folders[1]
    checkpoints.prune(folders[0].parent, 2)
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_what_is_no_checkpoint_stays(written: Written) -> None:
    output = written(1).parent
    for name in ("checkpoint-x", "model"):
        (output / name).mkdir()
    checkpoints.prune(output, 1)
    assert {path.name for path in output.iterdir()} == {"checkpoint-1", "checkpoint-x", "model"}


def test_a_folder_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "absent") is None
    assert checkpoints.starting_point(tmp_path / "absent", resume=False) is None


@pytest.mark.parametrize("name", ["checkpoint-4", "model"])
def test_a_used_folder_is_refused_if_told_so_and_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(BadConfig, match=f"holds {name}: name another output"):
        checkpoints.starting_point(tmp_path, resume=False)
    assert (tmp_path / name).is_dir()
