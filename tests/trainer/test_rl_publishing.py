"""Folders of published weights: whole, readable to the engine, and no more of them than are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlt_trainer.rl.publishing import Versions


def saved(text: str) -> object:
    def save(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_text(text)
        file.chmod(0o600)  # as safetensors does

    return save


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path / "weights", keep=2)


def test_others_may_read_it(versions: Versions) -> None:
    folder = versions.write(12, saved("a"))
    assert folder.name == "step-000012"
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_one_that_is_there_is_replaced(versions: Versions) -> None:
    versions.write(1, saved("a"))
    folder = versions.write(1, saved("b"))
    assert (folder / "model.safetensors").read_text() == "b"
    assert names(folder.parent) == ["step-000001"]


def test_a_write_that_fails_leaves_the_old_one(versions: Versions) -> None:
    folder = versions.write(1, saved("a"))

    def full(fresh: Path) -> None:
        (fresh / "model.safetensors").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        versions.write(1, full)
    assert (folder / "model.safetensors").read_text() == "a"
    assert names(folder.parent) == ["step-000001"]


def test_keeps_the_newest(versions: Versions) -> None:
    for step in (8, 9, 10):
        folder = versions.write(step, saved("a"))
    versions.prune(10)
    assert names(folder.parent) == ["step-000009", "step-000010"]


def test_a_run_that_goes_on_from_before_drops_what_came_later(versions: Versions) -> None:
    """Killed after it published step 13, with a checkpoint at 10: the newest by number are not those in use."""
    for step in (12, 13):
        folder = versions.write(step, saved("a"))
    (folder.parent / ".writing-killed").mkdir()
    versions.write(10, saved("a"))
    versions.prune(10)
    assert names(folder.parent) == ["step-000010"]
