"""Exports: chats that train a student, raw rows, a folder that `datasets` loads; and a store that was damaged."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from sqlalchemy import select, update

from rlt_client.formats import shipped_formats
from rlt_jobs.app import build as build_app
from rlt_jobs.builds.models import Build, Shard
from rlt_jobs.builds.spec import sample_seed
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.settings import Settings
from rlt_jobs.store import export as exporting
from rlt_jobs.store.models import File, Version
from rlt_jobs.store.publish import publish

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROBLEMS, N = 5, 3


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def api(module_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(module_settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def version(services: Services, make_build: Any) -> int:
    """A version of the two best of three samples for each of five problems."""
    build_id = await make_build(
        problems=PROBLEMS, n=N, shard_samples=6, owner="local", selection={"mode": "top_k", "k": 2}
    )
    async with services.database.begin() as session:
        ids = (await session.scalars(select(Shard.id).where(Shard.build_id == build_id))).all()
    for shard_id in ids:
        await work_shard(services, shard_id)
    await publish(services, build_id)
    async with services.database.begin() as session:
        found = await session.scalar(select(Version.id).where(Version.build_id == build_id))
        assert (await session.get_one(Build, build_id)).state == "done"
    assert found is not None
    return found


async def test_messages_are_what_the_student_is_scored_on(api: httpx.AsyncClient, version: int, platform: Any) -> None:
    reply = await api.get(f"/versions/{version}/export")
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert "attachment" in reply.headers["content-disposition"]
    rows = [json.loads(line) for line in reply.text.splitlines()]
    assert len(rows) == PROBLEMS * 2
    student = shipped_formats()["stratos"].student
    explanations = {platform.said(f"Q{p}", sample_seed(0, p, s, 0)) for p in range(PROBLEMS) for s in range(N)}
    for index, row in enumerate(rows):
        problem = index // 2
        system, user, assistant = row["messages"]
        assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
        assert (system["content"], user["content"]) == (student.system, f"Q{problem}")
        said = assistant["content"].removeprefix(student.open)
        explanation, closed, answer = said.partition(student.close)
        assert closed
        assert explanation in explanations
        assert answer == student.answer.replace("{answer}", f"A{problem}")


async def test_raw_rows_carry_everything_in_every_format(api: httpx.AsyncClient, version: int) -> None:
    async def get(format: str) -> bytes:
        reply = await api.get(f"/versions/{version}/export", params={"format": format, "shape": "raw"})
        assert reply.status_code == 200
        return reply.content

    lines = [json.loads(line) for line in (await get("jsonl")).splitlines()]
    table = pq.read_table(io.BytesIO(await get("parquet"))).to_pylist()
    assert lines == table
    assert [(row["problem"], row["rank"]) for row in lines] == [(p, r) for p in range(PROBLEMS) for r in (1, 2)]
    first = lines[0]
    assert {
        "question",
        "answer",
        "explanation",
        "completion",
        "reward",
        "ss_mean",
        "kl_max",
        "policy_revision",
    } <= first.keys()
    assert not {"file_id", "row", "token_ids"} & first.keys()
    assert lines[0]["reward"] >= lines[1]["reward"]


@pytest.mark.parametrize("shape", ["messages", "raw"])
async def test_the_folder_is_loaded_by_datasets(
    api: httpx.AsyncClient, version: int, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    reply = await api.get(f"/versions/{version}/export", params={"format": "hf", "shape": shape})
    folder = tmp_path / "export"
    with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == PROBLEMS * 2
    if shape == "messages":
        assert [m["role"] for m in loaded[0]["messages"]] == ["system", "user", "assistant"]
    else:
        assert loaded[0]["question"] == "Q0"
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nconfigs:")
    assert f"{PROBLEMS * 2} explanations" in card
    assert "fake-student" in card


async def test_a_version_tells_its_files_and_counts(api: httpx.AsyncClient, version: int) -> None:
    found = (await api.get(f"/versions/{version}")).json()
    assert (found["rows"], found["number"], found["selection"]["k"]) == (10, 1, 2)
    assert sum(file["rows"] for file in found["files"]) == PROBLEMS * N
    assert found["scorer"]["student"] == "fake-student"
    listed = (await api.get(f"/datasets/{found['dataset']}/versions")).json()["items"]
    assert listed == [found]
    (dataset,) = [d for d in (await api.get("/datasets")).json()["items"] if d["name"] == found["dataset"]]
    assert (dataset["builds"], dataset["versions"], dataset["latest_version"]) == (1, 1, version)


async def test_many_batches_make_one_file(
    api: httpx.AsyncClient, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (await api.get(f"/versions/{version}/export")).content
    monkeypatch.setattr(exporting, "BATCH", 3)
    assert (await api.get(f"/versions/{version}/export")).content == whole
    parquet = (await api.get(f"/versions/{version}/export", params={"format": "parquet"})).content
    assert pq.read_table(io.BytesIO(parquet)).num_rows == 10


async def test_a_damaged_store_is_told_before_the_first_byte(
    api: httpx.AsyncClient, version: int, services: Services
) -> None:
    async with services.database.begin() as session:
        row = await session.get_one(Version, version)
        file = await session.scalar(select(File).where(File.build_id == row.build_id, File.kind == "compact"))
    assert file is not None
    for uri in (file.uri, row.manifest_uri):
        path = Path(services.store.url) / uri
        kept = path.read_bytes()
        path.write_bytes(kept[:-1])
        reply = await api.get(f"/versions/{version}/export")
        assert (reply.status_code, reply.json()["type"]) == (500, "store_damaged"), uri
        path.unlink()
        assert (await api.get(f"/versions/{version}/export")).status_code == 500, uri
        path.write_bytes(kept)
    assert (await api.get(f"/versions/{version}/export")).status_code == 200


async def test_messages_of_a_format_that_nobody_knows_are_refused_and_raw_rows_are_not(
    api: httpx.AsyncClient, version: int, services: Services
) -> None:
    async with services.database.begin() as session:
        row = await session.get_one(Version, version)
        lineage = {**row.lineage, "format": {"name": "ours", "hash": "gone", "student": None}}
        await session.execute(update(Version).where(Version.id == version).values(lineage=lineage))
    reply = await api.get(f"/versions/{version}/export")
    assert (reply.status_code, reply.json()["type"]) == (409, "unknown_format")
    assert (await api.get(f"/versions/{version}/export", params={"shape": "raw"})).status_code == 200


@pytest.mark.parametrize("params", [{"format": "csv"}, {"shape": "sharegpt"}])
async def test_formats_and_shapes_that_do_not_exist_are_refused(
    api: httpx.AsyncClient, version: int, params: dict[str, str]
) -> None:
    assert (await api.get(f"/versions/{version}/export", params=params)).status_code == 422
