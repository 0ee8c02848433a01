"""Files of the store: whole or not there, and damage is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlt_jobs.store.files import Damaged, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_file_appears_whole_or_not_at_all(store: Store) -> None:
    def write_half() -> None:
        with store.create("a/b.bin") as pending:
            pending.writer.write(b"half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_half()
    assert list(store.root.rglob("*b.bin*")) == []

    with store.create("a/b.bin") as pending:
        pending.writer.write(b"whole")
    store.verify(pending.stored)
    with pytest.raises(FileExistsError), store.create("a/b.bin") as second:
        second.writer.write(b"other")
    assert store.path("a/b.bin").read_bytes() == b"whole"


@pytest.mark.parametrize("damage", [b"whol", b"whale", None])
def test_damage_is_found(store: Store, damage: bytes | None) -> None:
    with store.create("x") as pending:
        pending.writer.write(b"whole")
    path = store.path("x")
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(Damaged):
        store.verify(pending.stored)


@pytest.mark.parametrize("uri", ["../x", "/etc/passwd", "a/../../x"])
def test_names_stay_inside_the_store(store: Store, uri: str) -> None:
    with pytest.raises(Damaged):
        store.path(uri)
