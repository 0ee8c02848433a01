"""Uploads over HTTP: what they are told to be, what is refused, who sees them; and builds of each of them."""

from __future__ import annotations

import gzip
import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from sqlalchemy import func, select, update

from rlt_client.schemas.builds import Build, DryRun, Upload, UploadPage
from rlt_jobs import pages
from rlt_jobs.app import build as build_app
from rlt_jobs.builds.importer import run_import
from rlt_jobs.builds.models import Build as BuildRow
from rlt_jobs.builds.work import Services
from rlt_jobs.database import Database
from rlt_jobs.settings import Settings
from rlt_jobs.store.models import Upload as UploadRow
from rlt_service.keys import create_token, hash_token

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENS = {name: create_token() for name in ("ann", "bob")}
KEYS = ";".join(f"{name} build sha256:{hash_token(token)}" for name, token in TOKENS.items())
API = httpx.AsyncClient


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"question": ["Q0", "Q1"], "answer": ["A", "A"]}), file)
    return file.getvalue()


CSV = b"question,answer\nQ0,A\nQ1,A\n"
JSONL = b'{"question": "Q0", "answer": "A"}\n{"question": "Q1", "answer": "A"}\n'


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def api(module_settings: Settings) -> AsyncIterator[API]:
    app = build_app(module_settings.model_copy(update={"keys": KEYS, "teacher_url": "http://127.0.0.1:9"}))
    headers = {"authorization": f"Bearer {TOKENS['ann']}"}
    async with (
        app.router.lifespan_context(app),
        API(transport=httpx.ASGITransport(app), base_url="http://jobs", headers=headers) as client,
    ):
        yield client


async def uploaded(api: API, body: bytes, name: str | None = None, media_type: str = "") -> Upload:
    params = {} if name is None else {"name": name}
    reply = await api.post("/uploads", params=params, content=body, headers={"content-type": media_type})
    assert reply.status_code == 201, reply.text
    return Upload.model_validate_json(reply.content)


def request(upload: Upload, **changes: Any) -> dict[str, Any]:
    return {"dataset": "set", "source": {"upload": str(upload.id)}, "n": 2, **changes}


@pytest.mark.parametrize(
    ("body", "name", "media_type", "format", "suffix"),
    [
        (JSONL, None, "", "jsonl", "jsonl"),
        (CSV, "x.csv", "application/octet-stream", "csv", "csv"),
        (CSV, None, "text/csv", "csv", "csv"),
        (parquet(), "x", "", "parquet", "parquet"),
        (gzip.compress(CSV), "x.csv.gz", "", "csv", "csv.gz"),
    ],
    ids=["jsonl", "csv-by-name", "csv-by-type", "parquet-by-content", "csv-gzip"],
)
async def test_each_format_is_told_stored_and_built_from(
    api: API, services: Services, body: bytes, name: str | None, media_type: str, format: str, suffix: str
) -> None:
    upload = await uploaded(api, body, name, media_type)
    assert (upload.format, upload.bytes) == (format, len(body))
    with services.store.open(f"uploads/{upload.id}.{suffix}") as file:
        assert file.read() == body
    made = Build.model_validate_json((await api.post("/builds", json=request(upload))).content)
    assert (made.state, made.request["source"]["upload"]) == ("importing", str(upload.id))
    await run_import(services, made.id)
    counts = Build.model_validate_json((await api.get(f"/builds/{made.id}")).content).counts
    assert (counts.problems, counts.samples, counts.bad_rows, counts.duplicates) == (2, 4, 0, 0)


@pytest.mark.parametrize(
    ("body", "media_type", "says"),
    [
        (parquet()[:-30], "", "cut off"),
        (CSV, "application/vnd.apache.parquet", "does not begin with PAR1"),
        (CSV.decode().encode("utf-16"), "text/csv", "UTF-16"),
    ],
    ids=["truncated", "no-parquet", "utf-16"],
)
async def test_files_of_another_kind_are_refused_and_leave_nothing(
    api: API, services: Services, body: bytes, media_type: str, says: str
) -> None:
    before = sorted(entry.uri for entry in services.store.list("uploads"))
    reply = await api.post("/uploads", content=body, headers={"content-type": media_type})
    assert (reply.status_code, reply.json()["type"]) == (422, "unreadable_source")
    assert says in reply.json()["detail"]
    assert sorted(entry.uri for entry in services.store.list("uploads")) == before


async def test_uploads_are_listed_newest_first_to_their_owner(api: API, database: Database) -> None:
    made = [(await uploaded(api, JSONL, f"{i}.jsonl")).id for i in range(5)]
    async with database.begin() as session:
        await session.execute(update(UploadRow).where(UploadRow.id == made[2]).values(deleted_at=func.now()))
    got: list[Any] = []
    cursor: str | None = None
    while len(got) < 4:
        params = {"limit": "2", **({"cursor": cursor} if cursor else {})}
        page = UploadPage.model_validate_json((await api.get("/uploads", params=params)).content)
        got += [item.id for item in page.items]
        cursor = page.next
    assert got == [made[4], made[3], made[1], made[0]]
    bob = {"authorization": f"Bearer {TOKENS['bob']}"}
    assert (await api.get("/uploads", headers=bob)).json() == {"items": [], "next": None}
    gone = await api.post("/builds", json={"dataset": "set", "source": {"upload": str(made[2])}})
    assert gone.json()["type"] == "unknown_upload"


@pytest.mark.parametrize("key", [[1, "nobody"], [2**62, "0" * 32], ["a", "b"]])
async def test_cursors_of_others_are_refused(api: API, key: list[Any]) -> None:
    reply = await api.get("/uploads", params={"cursor": pages.encode("uploads", key)})
    assert (reply.status_code, reply.json()["type"]) == (422, "bad_cursor")


async def test_a_dry_run_answers_200_and_makes_no_build(api: API, database: Database) -> None:
    upload = await uploaded(api, CSV + b"Q1,A\nbad\n", "x.csv")

    async def builds() -> int:
        async with database.begin() as session:
            return await session.scalar(select(func.count()).select_from(BuildRow)) or 0

    before = await builds()
    reply = await api.post("/builds", params={"dry_run": True}, json=request(upload))
    assert reply.status_code == 200, reply.text
    told = DryRun.model_validate_json(reply.content)
    assert (told.problems, told.samples, told.duplicates, told.bad_rows) == (2, 4, 1, 1)
    assert (told.prompt_tokens, len(told.prompts)) == (None, 2)  # nobody listens at the teacher's address
    assert await builds() == before


async def test_repeats_among_inline_problems_are_dropped_and_traces_parsed(api: API) -> None:
    problems = [{"question": "Q", "answer": "A"}, {"question": "Q", "answer": "A"}]
    made = Build.model_validate_json((await api.post("/builds", json={"dataset": "s", "problems": problems})).content)
    assert (made.state, made.counts.problems, made.counts.duplicates) == ("running", 1, 1)
    traces = [
        {**problem, "explanation": text} for problem, text in zip(problems, ("<think>a</think>", "b"), strict=True)
    ]
    scored = await api.post("/builds", json={"dataset": "s", "kind": "score", "n": 1, "problems": traces})
    assert Build.model_validate_json(scored.content).counts.problems == 2
    traces[1]["explanation"] = "<think>never closed"
    refused = await api.post("/builds", json={"dataset": "s", "kind": "score", "n": 1, "problems": traces})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/problems/1/explanation")
