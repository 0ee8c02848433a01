"""Folders that are whole or absent, with real processes that race and die."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlt_trainer.tiny.folders import content_hash, made_once, whole

# Makes the folder slowly; says so in a log, so that the test can count.
MAKER = """
import sys, time
from pathlib import Path
from rlt_trainer.tiny.folders import made_once, whole

folder, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def make(out):
    with whole(out) as unfinished:
        (unfinished / "half").write_text("half")
        with log.open("a") as lines:
            lines.write("made\\n")
        time.sleep(seconds)
        (unfinished / "rest").write_text("rest")

made_once(folder, make)
assert (folder / "half").exists() and (folder / "rest").exists()
"""


def start_maker(folder: Path, log: Path, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", MAKER, str(folder), str(log), str(seconds)])


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 60  # a Python process starts in well under a second
    while not log.exists() or log.read_text() != text:
        assert time.monotonic() < deadline, f"{log} does not say so"
        time.sleep(0.01)


def visible(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if not entry.name.endswith((".lock", "log"))}


def test_three_processes_make_it_once(tmp_path: Path) -> None:
    makers = [start_maker(tmp_path / "out", tmp_path / "log", 0.5) for _ in range(3)]
    assert [maker.wait(60) for maker in makers] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "made\n"
    assert visible(tmp_path) == {"out"}


def test_a_killed_maker_leaves_no_folder_and_no_lock(tmp_path: Path) -> None:
    maker = start_maker(tmp_path / "out", tmp_path / "log", 60)
    wait_for(tmp_path / "log", "made\n")
    maker.send_signal(signal.SIGKILL)
    maker.wait(60)
    assert not (tmp_path / "out").exists()
    assert start_maker(tmp_path / "out", tmp_path / "log", 0).wait(60) == 0
    assert (tmp_path / "log").read_text() == "made\nmade\n"
    assert visible(tmp_path) == {"out"}, "what the killed one left is gone"


def test_a_failure_leaves_nothing_and_the_next_one_may_try(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        with whole(folder) as unfinished:
            (unfinished / "half").touch()
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        made_once(tmp_path / "out", fail)
    assert visible(tmp_path) == set()


def test_a_folder_with_something_in_it_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for name, replacing in (("out", None), ("out", "recipe.json"), ("file", "recipe.json")):
        with pytest.raises(FileExistsError), whole(tmp_path / name, replacing=replacing):
            pytest.fail("the block must not be entered")
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_an_empty_folder_is_filled_and_its_parents_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        with whole(folder) as unfinished:
            (unfinished / "x").touch()
        assert [file.name for file in folder.iterdir()] == ["x"]


def test_the_hash_sees_where_one_part_ends() -> None:
    assert content_hash(b"ab", b"c") != content_hash(b"a", b"bc")
    assert len(content_hash(b"")) == 16
