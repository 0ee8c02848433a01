"""The API over its own protocol: what it accepts, what it refuses, and who may see what."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import func, select, update

from rlt_client.schemas.builds import Build, BuildPage, BuildState, SamplePage, Upload
from rlt_client.schemas.common import GenStatus
from rlt_jobs.app import build as build_app
from rlt_jobs.builds.flush import flush
from rlt_jobs.builds.models import Build as BuildRow
from rlt_jobs.builds.models import Problem, Shard
from rlt_jobs.builds.outcomes import Outcome
from rlt_jobs.builds.repository import ScorerKey, pin_scorer
from rlt_jobs.builds.work import Services, work_shard
from rlt_jobs.database import Database
from rlt_jobs.leases import claim_shard
from rlt_jobs.outbox import Outbox
from rlt_jobs.settings import Settings
from rlt_service.keys import create_token, hash_token

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENS = {name: create_token() for name in ("ann", "bob", "explainer")}
KEYS = ";".join(
    f"{name} {'explain' if name == 'explainer' else 'build'} sha256:{hash_token(token)}"
    for name, token in TOKENS.items()
)
API = httpx.AsyncClient
Post = Callable[..., Awaitable[httpx.Response]]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def api(module_settings: Settings) -> AsyncIterator[API]:
    """A client of ann's; `auth(name)` gives the headers of the others."""
    app = build_app(
        module_settings.model_copy(update={"keys": KEYS, "max_text_chars": 1000, "max_upload_bytes": 10_000})
    )
    async with (
        app.router.lifespan_context(app),
        API(transport=httpx.ASGITransport(app), base_url="http://jobs", headers=auth("ann")) as client,
    ):
        yield client


def auth(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {TOKENS[name]}"}


def request(**changes: Any) -> dict[str, Any]:
    body = {"dataset": "set", "problems": [{"question": "Q", "answer": "A"}], "n": 2}
    return {name: value for name, value in {**body, **changes}.items() if value is not ...}


async def created(api: API, **changes: Any) -> Build:
    reply = await api.post("/builds", json=request(**changes))
    assert reply.status_code == 202, reply.text
    return Build.model_validate_json(reply.content)


async def test_inline_problems_run_at_once(api: API, database: Database) -> None:
    problems = [{"question": f"Q{i}", "answer": f"A{i}", "system": "S", "meta": {"i": i}} for i in range(1000)]
    made = await created(api, problems=problems, n=8)
    assert (made.state, made.counts.problems, made.counts.samples, made.counts.missing) == ("running", 1000, 8000, 8000)
    assert made.started_at is not None
    assert sum(made.counts.shards.values()) == made.counts.shards["ready"] == 32  # 256 // 8 = 32 problems: 1000 / 32
    assert "problems" not in made.request
    async with database.begin() as session:
        rows = select(Problem).where(Problem.build_id == made.id).order_by(Problem.idx)
        stored = (await session.scalars(rows)).all()
        assert (stored[999].question, stored[999].system, stored[999].meta) == ("Q999", "S", {"i": 999})
        assert (
            await session.scalar(select(func.count()).select_from(Outbox).where(Outbox.task == "rlt_jobs.shard")) == 32
        )


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"dataset": ...}, "/dataset"),
        ({"dataset": "../x"}, "/dataset"),
        ({"dataset": ""}, "/dataset"),
        ({"problems": []}, "/problems"),
        ({"problems": [{"question": "Q", "answer": "A"}] * 1001}, "/problems"),
        ({"problems": [{"question": "", "answer": "A"}]}, "/problems/0/question"),
        ({"problems": [{"question": " \n", "answer": "A"}]}, "/problems/0/question"),
        ({"problems": [{"question": "Q"}]}, "/problems/0/answer"),
        ({"problems": [{"question": "Q", "answer": None}]}, "/problems/0/answer"),
        ({"problems": [{"question": "Q", "answer": "A" * 1001}]}, "/problems/0/answer"),
        ({"problems": [{"question": "Q\0", "answer": "A"}]}, "/problems/0/question"),
        ({"problems": [{"question": "Q", "answer": "A", "meta": {"x": ["\0"]}}]}, "/problems/0/meta"),
        ({"problems": [{"question": "Q", "answer": "A", "solution": "A"}]}, "/problems/0/solution"),
        ({"n": 0}, "/n"),
        ({"n": "many"}, "/n"),
        ({"n": 10**9}, "/n"),
        ({"kind": "train"}, "/kind"),
        ({"sampling": {"temperature": -1}}, "/sampling/temperature"),
        ({"sampling": {"temprature": 1}}, "/sampling/temprature"),
        ({"seed": -1}, "/seed"),
        ({"priority": 10}, "/priority"),
        ({"spec": "best"}, "/spec"),
        ({"selection": {"mode": "top_k"}}, "/selection"),
        ({"selection": {"mode": "best", "k": 2}}, "/selection"),
        ({"problems": ...}, ""),
        ({"source": {"upload": str(uuid.uuid4())}}, ""),
        ({"problems": ..., "source": {"upload": "x"}}, "/source/upload"),
        ({"problems": ..., "source": {"upload": str(uuid.uuid4()), "columns": {"query": "q"}}}, "/source/columns"),
        ({"problems": ..., "source": {"upload": str(uuid.uuid4())}}, "/source/upload"),
        ({"colour": "red"}, "/colour"),
    ],
)
async def test_bad_requests_are_422_and_say_where(api: API, changes: dict[str, Any], pointer: str) -> None:
    reply = await api.post("/builds", json=request(**changes))
    problem = reply.json()
    assert (reply.status_code, reply.headers["content-type"]) == (422, "application/problem+json")
    assert pointer in [error["pointer"] for error in problem["errors"]], problem


async def test_kind_score_takes_explanations_and_one_sample(api: API) -> None:
    good = {"question": "Q", "answer": "A", "explanation": "E"}
    assert (await created(api, kind="score", n=1, problems=[good])).kind == "score"
    for changes in (
        {"kind": "score", "n": 2, "problems": [good]},
        {"kind": "score", "n": 1},
        {"kind": "generate", "problems": [good]},
    ):
        assert (await api.post("/builds", json=request(**changes))).status_code == 422


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"n": NaN}', b'"build"'])
async def test_what_is_no_request_is_refused(api: API, body: bytes) -> None:
    reply = await api.post("/builds", content=body, headers={"content-type": "application/json"})
    assert reply.status_code in (400, 422)
    assert reply.headers["content-type"] == "application/problem+json"


async def test_the_same_key_gives_the_same_build(api: API, database: Database) -> None:
    key = {"idempotency-key": uuid.uuid4().hex}
    replies = await asyncio.gather(*(api.post("/builds", json=request(seed=1), headers=key) for _ in range(5)))
    assert {reply.status_code for reply in replies} == {202}
    (id,) = {reply.json()["id"] for reply in replies}
    async with database.begin() as session:
        assert await session.scalar(select(func.count()).where(BuildRow.idempotency_key == key["idempotency-key"])) == 1
        assert await session.scalar(select(func.count()).where(Shard.build_id == id)) == 1

    spelt_out = request(seed=1, priority=0, selection={"mode": "best"})  # defaults written down ask for the same
    assert (await api.post("/builds", json=spelt_out, headers=key)).json()["id"] == id

    other = await api.post("/builds", json=request(seed=2), headers=key)
    assert (other.status_code, other.json()["type"]) == (422, "idempotency_key_reused")
    stranger = await api.post("/builds", json=request(seed=2), headers={**key, **auth("bob")})
    assert stranger.status_code == 202  # keys are the owner's own
    assert stranger.json()["id"] != id


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
async def test_keys_that_are_no_keys_are_refused(api: API, key: str) -> None:
    assert (await api.post("/builds", json=request(), headers={"idempotency-key": key})).status_code == 422


async def test_nobody_sees_what_another_owns(api: API, services: Services) -> None:
    mine = await created(api, dataset="mine")
    upload = await api.post("/uploads", content=b'{"question": "Q", "answer": "A"}\n')
    bob = auth("bob")
    for method, path in [
        ("GET", f"/builds/{mine.id}"),
        ("GET", f"/builds/{mine.id}/samples"),
        ("GET", f"/builds/{mine.id}/events"),
        ("POST", f"/builds/{mine.id}/pause"),
        ("POST", f"/builds/{mine.id}/resume"),
        ("POST", f"/builds/{mine.id}/cancel"),
        ("GET", "/datasets/mine/versions"),
    ]:
        reply = await api.request(method, path, headers=bob)
        assert (reply.status_code, reply.json()["type"]) == (404, "not_found"), path
    assert mine.id not in [item["id"] for item in (await api.get("/builds", headers=bob)).json()["items"]]
    assert "mine" not in [item["name"] for item in (await api.get("/datasets", headers=bob)).json()["items"]]
    theirs = request(problems=..., source={"upload": upload.json()["id"]})
    assert (await api.post("/builds", json=theirs, headers=bob)).json()["type"] == "unknown_upload"
    same_name = await api.post("/builds", json=request(dataset="mine"), headers=bob)
    assert same_name.status_code == 202  # a data set of bob's own


async def test_without_the_right_key_nothing_is_answered(api: API) -> None:
    for method, path in [("GET", "/builds"), ("POST", "/builds"), ("POST", "/uploads"), ("GET", "/versions/1/export")]:
        none = await api.request(method, path, headers={"authorization": ""})
        assert none.status_code == 401, path
        wrong = await api.request(method, path, headers={"authorization": f"Bearer {create_token()}"})
        assert wrong.status_code == 401, path
        scope = await api.request(method, path, headers=auth("explainer"))
        assert (scope.status_code, scope.json()["type"]) == (403, "missing_scope"), path


@pytest.mark.parametrize(
    "path", ["/builds/0", "/builds/x", f"/builds/{2**63}", "/versions/-1", "/datasets/a%00b/versions"]
)
async def test_names_that_cannot_be_are_refused(api: API, path: str) -> None:
    assert (await api.get(path)).status_code == 422


@pytest.mark.parametrize(
    "path", ["/builds/999999", "/versions/999999", "/versions/999999/export", "/datasets/no/versions"]
)
async def test_names_that_are_not_are_not_found(api: API, path: str) -> None:
    assert (await api.get(path)).status_code == 404


async def test_pause_resume_cancel_and_what_their_order_forbids(api: API) -> None:
    id = (await created(api)).id

    async def act(verb: str) -> tuple[int, str]:
        reply = await api.post(f"/builds/{id}/{verb}")
        return reply.status_code, reply.json().get("state") or reply.json()["type"]

    assert await act("pause") == (200, "paused")
    assert await act("pause") == (200, "paused")  # said twice is said once
    assert await act("resume") == (200, "running")
    assert await act("resume") == (200, "running")
    assert await act("cancel") == (200, "cancelled")
    assert await act("cancel") == (200, "cancelled")
    assert await act("pause") == (409, "wrong_state")
    assert await act("resume") == (409, "wrong_state")
    assert Build.model_validate((await api.get(f"/builds/{id}")).json()).finished_at is not None


async def test_builds_are_listed_newest_first_in_pages(api: API) -> None:
    name = f"listed-{uuid.uuid4().hex}"
    ids = [(await created(api, dataset=name)).id for _ in range(5)]
    await api.post(f"/builds/{ids[1]}/cancel")
    got: list[int] = []
    cursor = None
    while True:
        params = {"dataset": name, "limit": 2, **({"cursor": cursor} if cursor else {})}
        page = BuildPage.model_validate((await api.get("/builds", params=params)).json())
        got += [item.id for item in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert got == ids[::-1]
    cancelled = await api.get("/builds", params={"dataset": name, "state": "cancelled"})
    assert [item["id"] for item in cancelled.json()["items"]] == [ids[1]]


async def test_uploads_stream_to_disk_and_become_builds(api: API, services: Services) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for i in range(20):
            yield b'{"question": "Q%d", ' % i
            yield b'"answer": "A"}\n'

    reply = await api.post("/uploads", params={"name": "problems.jsonl"}, content=pieces())
    assert reply.status_code == 201, reply.text
    upload = Upload.model_validate(reply.json())
    assert upload.name == "problems.jsonl"
    stored = Path(services.store.url) / f"uploads/{upload.id}.jsonl"
    assert stored.stat().st_size == upload.bytes == len(stored.read_bytes())
    made = await created(api, problems=..., source={"upload": str(upload.id)})
    assert (made.state, made.counts.problems, made.request["upload"]) == ("importing", 0, str(upload.id))
    assert (await api.post(f"/builds/{made.id}/pause")).status_code == 409


async def test_uploads_that_are_refused_leave_nothing(api: API, services: Services) -> None:
    folder = Path(services.store.url) / "uploads"
    before = sorted(folder.glob("*")) if folder.exists() else []
    assert (await api.post("/uploads", content=b"")).json()["type"] == "empty_upload"
    assert (await api.post("/uploads", content=b"x" * 10_001)).status_code == 413
    form = await api.post("/uploads", files={"file": b"x"})
    assert (form.status_code, form.json()["type"]) == (422, "unsupported_media_type")
    assert (await api.post("/uploads", params={"name": "a\0b"}, content=b"x")).status_code == 422
    assert sorted(folder.glob("*")) == before


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def alone(database: Database) -> None:
    """Claims take the best shard of all: builds that earlier tests left open are cancelled."""
    async with database.begin() as session:
        await session.execute(update(BuildRow).where(BuildRow.finished_at.is_(None)).values(state=BuildState.cancelled))


@pytest_asyncio.fixture(loop_scope="module")
async def browsed(api: API, database: Database, outcome: Callable[..., Outcome]) -> int:
    """A build of 3 problems × 2 samples of which 5 have outcomes: three scored, one truncated, one failed."""
    made = await created(api, problems=[{"question": f"Q{i}", "answer": f"A{i}"} for i in range(3)])
    async with database.begin() as session:
        shard_id = await session.scalar(select(Shard.id).where(Shard.build_id == made.id))
        lease = await claim_shard(session, shard_id or 0, worker="test", seconds=60)
    assert lease is not None
    rows = [
        outcome(0, 0, reward=-3.0),
        outcome(0, 1, reward=-1.0),
        outcome(1, 0, reward=-2.0),
        outcome(1, 1, GenStatus.truncated),
        outcome(2, 0, GenStatus.engine_error),
    ]
    async with database.begin() as session:
        scorer = await pin_scorer(session, made.id, ScorerKey("s", "r", "sent", None, "f", "h", "k1", 0.7, 0.7))
        await flush(session, lease, rows, scorer_id=scorer, seconds=1)
    return made.id


async def keys(api: API, build_id: int, **params: Any) -> list[tuple[int, int]]:
    """Of all samples, read in pages of two."""
    got: list[tuple[int, int]] = []
    cursor = None
    while True:
        reply = await api.get(
            f"/builds/{build_id}/samples", params={**params, "limit": 2, **({"cursor": cursor} if cursor else {})}
        )
        assert reply.status_code == 200, reply.text
        page = SamplePage.model_validate(reply.json())
        assert len(page.items) <= 2
        got += [(item.problem, item.sample) for item in page.items]
        cursor = page.next
        if cursor is None:
            return got


async def test_samples_come_in_three_orders_both_ways(api: API, browsed: int) -> None:
    by_index = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert await keys(api, browsed) == by_index
    assert await keys(api, browsed, descending=True) == by_index[::-1]
    by_reward = [(0, 0), (1, 0), (0, 1)]  # −3, −2, −1; the others have none
    assert await keys(api, browsed, sort="reward") == by_reward
    assert await keys(api, browsed, sort="reward", descending=True) == by_reward[::-1]
    assert await keys(api, browsed, sort="length") == by_index  # all are equally long: then by index
    assert (await api.get(f"/builds/{browsed}/samples", params={"sort": "luck"})).status_code == 422


async def test_samples_are_filtered_by_what_became_of_them(api: API, browsed: int) -> None:
    assert await keys(api, browsed, gen_status="complete") == [(0, 0), (0, 1), (1, 0)]
    assert await keys(api, browsed, gen_status="truncated") == [(1, 1)]
    assert await keys(api, browsed, score_status="skipped") == [(1, 1), (2, 0)]
    assert await keys(api, browsed, score_status="scored", gen_status="truncated") == []
    assert await keys(api, browsed, score_status="scored", sort="reward") == [(0, 0), (1, 0), (0, 1)]


async def test_counts_are_those_of_the_rows(api: API, browsed: int) -> None:
    counts = Build.model_validate((await api.get(f"/builds/{browsed}")).json()).counts
    assert (counts.samples, counts.missing) == (6, 1)
    assert {status.value: n for status, n in counts.gen.items() if n} == {
        "complete": 3,
        "truncated": 1,
        "engine_error": 1,
    }
    assert {status.value: n for status, n in counts.score.items()} == {"scored": 3, "score_error": 0, "skipped": 2}
    assert counts.completion_tokens == 35


async def test_pace_and_time_left_are_told_while_it_runs(api: API, browsed: int) -> None:
    found = Build.model_validate((await api.get(f"/builds/{browsed}")).json())
    assert found.tokens_per_second == 35.0  # 5 samples of 7 tokens in the one second of the flush
    assert found.eta_seconds == pytest.approx(1 / 5)  # one sample is missing, at 5 a second


async def test_texts_come_from_the_spool_and_from_the_file_alike(
    api: API, services: Services, platform: Any, make_build: Any
) -> None:
    build_id = await make_build(problems=2, n=1)
    platform.rules.append(lambda path, question: _down() if (path, question) == ("/explain", "Q1") else None)
    async with services.database.begin() as session:
        shard_id = await session.scalar(select(Shard.id).where(Shard.build_id == build_id))

    async def texts() -> list[tuple[Any, ...]]:
        reply = await api.get(f"/builds/{build_id}/samples", params={"texts": True})
        rows = SamplePage.model_validate(reply.json()).items
        return [(row.problem, row.question, row.answer, row.explanation) for row in rows]

    await work_shard(services, shard_id or 0)
    (spooled,) = await texts()
    assert spooled[:3] == (0, "Q0", "A0")
    assert spooled[3].startswith("Q0: ")
    platform.rules.clear()
    async with services.database.begin() as session:  # after a lease that ended badly a shard rests
        await session.execute(update(Shard).where(Shard.build_id == build_id).values(retry_at=None))
    await work_shard(services, shard_id or 0)
    sealed = await texts()
    assert (len(sealed), sealed[0]) == (2, spooled)
    plain = SamplePage.model_validate((await api.get(f"/builds/{build_id}/samples")).json()).items
    assert [(row.question, row.explanation) for row in plain] == [(None, None)] * 2


def _down() -> Exception:
    from rlt_client.errors import Unavailable

    return Unavailable("down")


@pytest.mark.parametrize(
    "cursor", ["x", "!!!!", "bnVsbA", "W10", "WyJidWlsZHMiLDEsMl0", "WyJidWlsZHMiLCJhIl0", "a" * 1025]
)
async def test_cursors_that_are_not_ours_are_refused(api: API, cursor: str) -> None:
    assert (await api.get("/builds", params={"cursor": cursor})).status_code == 422


async def test_a_cursor_of_one_order_is_refused_by_another(api: API, browsed: int) -> None:
    page = (await api.get(f"/builds/{browsed}/samples", params={"limit": 1})).json()
    reply = await api.get(f"/builds/{browsed}/samples", params={"cursor": page["next"], "descending": True})
    assert (reply.status_code, reply.json()["type"]) == (422, "bad_cursor")


@pytest.mark.parametrize("limit", [0, 501, "all"])
async def test_pages_have_a_size(api: API, limit: object) -> None:
    assert (await api.get("/builds", params={"limit": str(limit)})).status_code == 422


async def test_a_database_that_is_down_is_503_and_named(settings: Settings, tmp_path: Path) -> None:
    url = f"postgresql+psycopg://rlt@/postgres?host={tmp_path}"
    app = build_app(settings.model_copy(update={"database_url": url}))
    async with API(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        for reply in (await client.get("/builds"), await client.post("/builds", json=request())):
            assert (reply.status_code, reply.json()["type"]) == (503, "database_unavailable")
            assert reply.headers["retry-after"] == "2"
        assert (await client.get("/livez")).status_code == 200
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert "database" in ready.json()["detail"]


async def test_readiness_knows_whether_the_tables_are_there(
    api: API, settings: Settings, empty_postgres_url: str
) -> None:
    assert (await api.get("/readyz")).status_code == 200
    app = build_app(settings.model_copy(update={"database_url": empty_postgres_url}))
    async with API(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        assert "rlt-jobs migrate" in (await client.get("/readyz")).json()["detail"]
