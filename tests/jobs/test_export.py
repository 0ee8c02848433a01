"""Exports: chats that train a student, raw rows, a folder that `datasets` loads; and a store that was damaged."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from sqlalchemy import delete, select, update

from rlt_client.formats import shipped_formats
from rlt_jobs.app import build as build_app
from rlt_jobs.builds.models import Build, Shard
from rlt_jobs.builds.spec import sample_seed
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.settings import Settings
from rlt_jobs.store import export as exporting
from rlt_jobs.store import joined as joining
from rlt_jobs.store.models import ExportFile, File, Version
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


async def _rows(api: httpx.AsyncClient, version: int, shape: str) -> list[dict[str, Any]]:
    reply = await api.get(f"/versions/{version}/export", params={"shape": shape})
    assert reply.status_code == 200, reply.text
    return [json.loads(line) for line in reply.text.splitlines()]


async def test_the_other_shapes_say_the_same(api: httpx.AsyncClient, version: int) -> None:
    chats = [row["messages"] for row in await _rows(api, version, "messages")]
    cut = await _rows(api, version, "prompt_completion")
    assert [row["prompt"] + row["completion"] for row in cut] == chats
    assert {message["role"] for row in cut for message in row["completion"]} == {"assistant"}
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    talks = [row["conversations"] for row in await _rows(api, version, "sharegpt")]
    assert [[{"role": roles[t["from"]], "content": t["value"]} for t in talk] for talk in talks] == chats


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
    _check_card((folder / "README.md").read_text(), shape)


def _check_card(card: str, shape: str) -> None:
    front, _, text = card.removeprefix("---\n").partition("\n---\n")
    head = yaml.safe_load(front)
    (config,) = head["configs"]
    assert re.fullmatch(rf"v1-{shape}-[0-9a-f]{{12}}", config["config_name"])
    assert config["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert head["size_categories"] == ["n<1K"]
    assert "license" not in head
    assert f"{PROBLEMS * 2} explanations of {PROBLEMS} problems" in text
    assert "the 2 best of each problem were kept" in text
    assert "| complete | 15 |" in text
    assert re.search(r"\| student \| fake-student \(", text)
    rewards = re.search(r"\| the reward \|(.*)\|", text)
    assert rewards is not None
    mean, least, *_, most = (float(figure) for figure in rewards[1].split("|"))
    assert least < mean < most < 0
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(code, "card", "exec")
    assert ("SFTTrainer" in text) is (shape != "raw")


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
    api: httpx.AsyncClient, version: int, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (await api.get(f"/versions/{version}/export")).content
    await _forget(services, version)
    monkeypatch.setattr(joining, "BATCH", 3)
    monkeypatch.setattr(exporting, "GROUP", 1)
    monkeypatch.setattr(exporting, "MEMBER", 1)
    monkeypatch.setattr(exporting, "PIECE", 100)
    assert (await api.get(f"/versions/{version}/export")).content == whole
    parquet = (await api.get(f"/versions/{version}/export", params={"format": "parquet"})).content
    assert pq.ParquetFile(io.BytesIO(parquet)).metadata.num_row_groups == 4
    folder = (await api.get(f"/versions/{version}/export", params={"format": "hf"})).content
    with zipfile.ZipFile(io.BytesIO(folder)) as archive:
        members = [name for name in archive.namelist() if name.startswith("data/")]
        rows = [row for name in members for row in pq.read_table(io.BytesIO(archive.read(name))).to_pylist()]
    assert members == [f"data/train-{number:05d}.parquet" for number in range(4)]
    assert rows == [json.loads(line) for line in whole.splitlines()]


async def _forget(services: Services, version: int) -> None:
    async with services.database.begin() as session:
        await session.execute(delete(ExportFile).where(ExportFile.version_id == version))


@pytest.mark.parametrize("format", ["jsonl", "parquet", "hf"])
async def test_the_same_bytes_come_whenever_they_are_made(
    api: httpx.AsyncClient, version: int, services: Services, format: str
) -> None:
    made = []
    for _ in range(2):
        await _forget(services, version)
        made.append((await api.get(f"/versions/{version}/export", params={"format": format})).content)
    assert made[0] == made[1]
    if format == "hf":
        with zipfile.ZipFile(io.BytesIO(made[0])) as archive:
            assert {member.date_time[0] for member in archive.infolist()} == {1980}


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


@pytest.mark.parametrize("params", [{"format": "csv"}, {"shape": "alpaca"}])
async def test_formats_and_shapes_that_do_not_exist_are_refused(
    api: httpx.AsyncClient, version: int, params: dict[str, str]
) -> None:
    assert (await api.get(f"/versions/{version}/export", params=params)).status_code == 422
