"""Data sets by name: folders through `datasets` itself, and what neither folder nor hub may lead to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from rlt_client.errors import InvalidRequest
from rlt_client.schemas.builds import BuildKind, HubSource, Source
from rlt_jobs.builds.sources import hub
from rlt_jobs.builds.sources.opening import Sources
from rlt_jobs.builds.sources.rows import START, Position, Row, SourceError
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store
from rlt_service.paths import AllowedRoots

Read = Callable[..., list[Row]]
CARD = """---
configs:
- config_name: hard
  data_files: hard/*.jsonl
- config_name: stolen
  data_files: {outside}
---
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder `set` of two splits, as people clone one from the hub, and a file that is none of ours beside it."""
    made = tmp_path / "root"
    folder = made / "set"
    folder.mkdir(parents=True)
    outside = tmp_path / "outside.jsonl"
    outside.write_text('{"question": "secret", "answer": "secret"}\n')
    for name, count in (("train", 600), ("test", 3)):
        rows = [json.dumps({"problem": f"{name}{i}", "answer": str(i), "level": i}) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return made


@pytest.fixture
def sources(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    monkeypatch.setattr(datasets.config, "TORCH_AVAILABLE", False)  # a worker has none; here it takes seconds to load
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    settings = Settings(database_url="postgresql+psycopg://nowhere/x", data_roots=[root])
    return Sources(settings, Store(tmp_path / "store"))


@pytest.fixture
def read(sources: Sources) -> Read:
    def rows(at: Position = START, **place: Any) -> list[Row]:
        source = Source(hub=HubSource(name="set", **place), columns={"question": "problem"})
        return list(sources.rows(source, BuildKind.generate, None, at))

    return rows


def test_a_folder_is_read_as_datasets_reads_it_and_goes_on_from_any_row(read: Read) -> None:
    rows = read()
    assert [(row.line, (row.values or {})["problem"]) for row in rows] == [(i + 1, f"train{i}") for i in range(600)]
    assert rows[5].values == {"problem": "train5", "answer": "5", "level": 5}
    for done in (1, 256, 300, 600):
        assert read(rows[done - 1].end) == rows[done:]
    assert [(row.values or {})["problem"] for row in read(split="test")] == ["test0", "test1", "test2"]


@pytest.mark.parametrize(
    ("place", "says"),
    [({"split": "nope"}, "Bad split: nope"), ({"config": "nope"}, "nope")],
)
def test_a_split_or_config_that_is_not_there_is_told(read: Read, place: dict[str, Any], says: str) -> None:
    with pytest.raises(SourceError, match=says) as refused:
        read(**place)
    assert refused.value.type == "hub_unusable"


def test_a_card_cannot_name_files_outside(read: Read, root: Path, tmp_path: Path) -> None:
    (root / "set" / "hard").mkdir()
    (root / "set" / "hard" / "a.jsonl").write_text('{"problem": "hard", "answer": "1"}\n')
    (root / "set" / "README.md").write_text(CARD.format(outside=tmp_path / "outside.jsonl"))
    assert [(row.values or {})["problem"] for row in read(config="hard")] == ["hard"]
    with pytest.raises(SourceError) as refused:
        read(config="stolen")
    assert refused.value.type == "path_not_allowed"


def test_a_column_that_is_not_there_is_told(sources: Sources) -> None:
    source = Source(hub=HubSource(name="set"), columns={"question": "prompt"})
    with pytest.raises(SourceError, match=r"'prompt' \(for question\); the columns are 'problem', 'answer', 'level'"):
        list(sources.rows(source, BuildKind.generate, None, START))


def test_names_lead_to_the_hub_only_where_that_is_allowed(
    sources: Sources, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "data").mkdir()
    open_ = Settings(database_url="postgresql+psycopg://nowhere/x", data_roots=[root], allow_hub=True)
    allowed = Sources(open_, Store(tmp_path / "store"))
    sources.check(Source(hub=HubSource(name="set")))
    allowed.check(Source(hub=HubSource(name="open-r1/some-set")))
    for name in ("open-r1/some-set", "json"):
        with pytest.raises(InvalidRequest) as refused:
            sources.check(Source(hub=HubSource(name=name)))
        assert refused.value.type == "hub_not_allowed"
    for name in ("json", "../outside", "https://example.com/x", "a/b/c", str(tmp_path / "own")):
        with pytest.raises(InvalidRequest):
            allowed.check(Source(hub=HubSource(name=name)))
    with pytest.raises(SourceError, match="outside those that builds may read"):  # `datasets` would take the folder
        list(allowed.rows(Source(hub=HubSource(name="own/data")), BuildKind.generate, None, START))


def test_a_revision_is_pinned_to_its_commit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, str | None]] = []

    class Api:
        def dataset_info(self, name: str, *, revision: str | None, timeout: float) -> Any:
            asked.append((name, revision))
            return SimpleNamespace(id=name, sha="c" * 40)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    roots = AllowedRoots([root])
    found = hub.pinned(HubSource(name="open-r1/some-set", revision="main"), roots)
    assert (found.revision, asked) == ("c" * 40, [("open-r1/some-set", "main")])
    assert hub.pinned(found, roots) is found  # a commit is not asked for again
    assert hub.pinned(HubSource(name="set"), roots).revision is None  # a folder has none


def test_a_hub_that_cannot_be_reached_is_told_apart(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub

    class Api:
        def dataset_info(self, *_: Any, **__: Any) -> Any:
            raise httpx.ConnectError("no route to host")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(SourceError, match="no route to host") as refused:
        hub.pinned(HubSource(name="open-r1/some-set"), AllowedRoots([root]))
    assert refused.value.type == "hub_unavailable"
