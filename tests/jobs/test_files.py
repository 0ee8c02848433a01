"""Files of the store, in a folder and in a bucket: whole or not there, and damage is found."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlt_jobs.store.files import Damaged, Store, StoreFull, StoreUnavailable
from rlt_jobs.store.traces import open_writer

PART = 5 * 2**20  # the least that S3 takes


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("rlt_jobs.store.bucket.PART", PART)
    if request.param == "folder":
        return Store(tmp_path / "store")
    bucket: Store = request.getfixturevalue("bucket_store")
    return bucket


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, uri: str, data: bytes) -> Any:
    with store.create(uri) as pending:
        pending.writer.write(data)
    return pending.stored


def names(store: Store) -> list[str]:
    return sorted(entry.uri for entry in store.list())


def test_a_file_appears_whole_or_not_at_all(store: Store) -> None:
    def write_half() -> None:
        with store.create("a/b.bin") as pending:
            pending.writer.write(b"half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_half()
    assert (names(store), store.exists("a/b.bin")) == ([], False)
    stored = put(store, "a/b.bin", b"whole")
    store.verify(stored)
    assert (store.size("a/b.bin"), store.open("a/b.bin").read()) == (5, b"whole")
    assert names(store) == ["a/b.bin"]


def test_a_name_is_used_once(store: Store) -> None:
    put(store, "x", b"first")
    with pytest.raises(FileExistsError, match="used once"):
        put(store, "x", b"second")
    assert store.open("x").read() == b"first"


def test_of_two_that_write_the_same_name_at_once_one_wins(store: Store) -> None:
    def write_late() -> None:
        with store.create("x") as late:
            late.writer.write(b"late")
            put(store, "x", b"early")

    with pytest.raises(FileExistsError):
        write_late()
    assert store.open("x").read() == b"early"
    assert names(store) == ["x"]


def test_files_of_many_parts_and_of_no_byte(store: Store) -> None:
    with store.create("big") as pending:
        for _ in range(5):
            pending.writer.write(b"0123456789abcdef" * (PART // 32))
    store.verify(pending.stored)
    assert store.size("big") == pending.stored.bytes == 5 * PART // 2
    store.verify(put(store, "empty", b""))
    assert list(store.unfinished()) == []


def test_a_big_file_that_breaks_off_leaves_nothing(store: Store) -> None:
    def write_half() -> None:
        with store.create("big") as pending:
            for _ in range(3):
                pending.writer.write(bytes(PART))
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_half()
    assert (names(store), list(store.unfinished())) == ([], [])


async def test_a_file_is_written_from_an_event_loop(store: Store) -> None:
    async with store.writing("x") as pending:
        pending.writer.write(b"whole")
    store.verify(pending.stored)

    async def write_half() -> None:
        async with store.writing("y") as pending:
            pending.writer.write(b"half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        await write_half()
    assert names(store) == ["x"]


def test_a_file_can_be_read_in_any_order(store: Store) -> None:
    put(store, "x", bytes(range(256)) * 100)
    with store.open("x") as file:
        assert (file.seek(-3, io.SEEK_END), file.read()) == (25_597, b"\xfd\xfe\xff")
        assert (file.seek(300), file.read(2), file.tell()) == (300, b"\x2c\x2d", 302)
        assert (file.seek(-1, io.SEEK_CUR), file.read(1)) == (301, b"\x2d")
        assert (file.seek(30_000), file.read(1)) == (30_000, b"")


def test_parquet_is_written_and_read_by_parts(store: Store) -> None:
    rows = pa.table({"n": pa.array(range(10_000))})
    with store.create("x.parquet") as pending, open_writer(pending.writer, rows.schema) as writer:
        writer.write_table(rows, row_group_size=1_000)
    with store.open("x.parquet") as file, pq.ParquetFile(file) as parquet:
        assert parquet.read_row_group(7)["n"].to_pylist() == list(range(7_000, 8_000))
        assert parquet.read().equals(rows)


def test_listing_is_by_folder_and_always_true(store: Store) -> None:
    for uri in ("a/1", "a/b/2", "c"):
        put(store, uri, b"1234")
    assert sorted((entry.uri, entry.bytes) for entry in store.list("a")) == [("a/1", 4), ("a/b/2", 4)]
    store.remove("a/1")
    store.remove("a/1")
    assert names(store) == ["a/b/2", "c"]
    assert list(store.list("nothing")) == []


@pytest.mark.parametrize("damage", [b"whol", b"whale", None])
def test_damage_is_found(store: Store, damage: bytes | None) -> None:
    stored = put(store, "x", b"whole")
    store.remove("x")
    if damage is not None:
        put(store, "x", damage)
    with pytest.raises(Damaged):
        store.verify(stored)


def test_what_is_missing_is_told_by_every_way_to_ask(store: Store) -> None:
    put(store, "there", b"1")
    for ask in (store.open, store.size):
        with pytest.raises(Damaged, match="gone"):
            ask("gone")
    assert not store.exists("gone")


@pytest.mark.parametrize("uri", ["../x", "/etc/passwd", "a/../../x", "", ".", "a\0b"])
def test_names_stay_inside_the_store(store: Store, uri: str) -> None:
    for ask in (store.open, store.size, store.remove, store.local):
        with pytest.raises(Damaged):
            ask(uri)
    with pytest.raises(Damaged):
        put(store, uri, b"x")


def test_links_that_lead_out_are_not_followed(folder: Store, tmp_path: Path) -> None:
    put(folder, "a", b"1")
    (tmp_path / "secret").write_bytes(b"2")
    (Path(folder.url) / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(Damaged):
        folder.open("link")


def test_a_full_disk_is_waited_for_and_leaves_nothing(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("rlt_jobs.store.folder.os.fsync", full)
        with pytest.raises(StoreFull, match="No space") as caught:
            put(folder, "x", b"1")
    assert (caught.value.status, caught.value.type) == (507, "store_full")
    assert names(folder) == []
    put(folder, "x", b"1")


def test_a_full_disk_is_told_through_parquet_writers(folder: Store) -> None:
    rows = pa.table({"n": pa.array(range(10))})

    def write() -> None:
        with folder.create("x") as pending, Path("/dev/full").open("wb", buffering=0) as disk:
            pending.writer._file = disk  # the kernel's own full disk
            with open_writer(pending.writer, rows.schema) as writer:
                writer.write_table(rows)

    with pytest.raises(StoreFull):
        write()
    assert names(folder) == []


def test_a_folder_that_is_gone_has_lost_nothing(folder: Store) -> None:
    put(folder, "a/x", b"1")
    root = Path(folder.url)
    away = root.rename(root.with_name("away"))
    with pytest.raises(StoreUnavailable):
        folder.open("a/x")
    root.write_bytes(b"a plain file in its place")
    for ask in (lambda: folder.open("a/x"), lambda: put(folder, "a/y", b"1"), folder.probe, lambda: names(folder)):
        with pytest.raises(StoreUnavailable):
            ask()
    root.unlink()
    away.rename(root)
    folder.probe()
    assert names(folder) == ["a/x"]
