"""Reading an upload: resumable by line, and every row that is refused is told of."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import select, text, update

from rlt_client.schemas.builds import BuildRequest, BuildState, Source
from rlt_jobs.builds import intake, repository
from rlt_jobs.builds.importer import run_import
from rlt_jobs.builds.intake import take_in
from rlt_jobs.builds.models import Build, Event, Problem, Shard
from rlt_jobs.builds.spec import Spec, request_hash
from rlt_jobs.builds.work import Services
from rlt_jobs.database import Database
from rlt_jobs.leases import claim_build, reap
from rlt_jobs.store.files import Store
from rlt_jobs.store.repository import add_upload

pytestmark = pytest.mark.asyncio(loop_scope="module")


Submit = Callable[..., Awaitable[int]]


@pytest.fixture
def submit(database: Database, store: Store) -> Submit:
    """A build in state `importing` over a file of these bytes."""

    async def make(body: bytes, **options: Any) -> int:
        upload_id = uuid.uuid4()
        with store.create(f"uploads/{upload_id}.jsonl") as pending:
            pending.writer.write(body)
        columns = options.pop("columns", {})
        request = BuildRequest(dataset="set", source=Source(upload=upload_id, columns=columns), **options)
        spec = Spec.of(request)
        async with database.begin() as session:
            await add_upload(session, upload_id, "ann", "x.jsonl", pending.stored)
            build = await repository.insert_build(
                session,
                dataset_id=await repository.dataset_id(session, "ann", "set"),
                owner="ann",
                kind=request.kind,
                n=request.n,
                spec=spec.stored(),
                spec_hash=spec.hash(),
                request_hash=request_hash(request),
                upload_id=upload_id,
            )
        assert build is not None
        return build.id

    return make


def lines(count: int, first: int = 0) -> bytes:
    return b"".join(json.dumps({"question": f"Q{i}", "answer": f"A{i}"}).encode() + b"\n" for i in range(first, count))


async def problems(database: Database, build_id: int) -> list[Problem]:
    async with database.begin() as session:
        rows = await session.scalars(select(Problem).where(Problem.build_id == build_id).order_by(Problem.idx))
        return list(rows)


async def bad_rows(database: Database, build_id: int) -> list[tuple[int | None, str]]:
    async with database.begin() as session:
        rows = select(Event.line, Event.detail).where(Event.build_id == build_id, Event.kind == "bad_row")
        return [(line, detail) for line, detail in await session.execute(rows.order_by(Event.line))]


async def build(database: Database, build_id: int) -> Build:
    async with database.begin() as session:
        return await session.get_one(Build, build_id)


async def test_good_rows_become_problems_and_bad_ones_events(services: Services, submit: Submit) -> None:
    body = b"\n".join(
        [
            b'\xef\xbb\xbf{"question": "Q1", "answer": "A1", "source": "gsm8k", "level": 3}',  # a byte-order mark
            b"{not json",
            b'["Q", "A"]',
            b'{"question": "Q2"}',
            b'{"question": "", "answer": "A"}',
            b'{"question": "  ", "answer": "A"}',
            b'{"question": 5, "answer": "A"}',
            b'{"question": "Q\\u0000", "answer": "A"}',
            b'{"question": "Q", "answer": "A", "meta": {"x": "\\u0000"}}',
            b'{"question": "Q", "answer": NaN}',
            b'{"question": "\xff", "answer": "A"}',
            b"",
            b'{"question": "\\ud800", "answer": "A"}',
            b'{"question": "Q3", "answer": "A3", "system": "S", "meta": {"x": 1}}',  # no newline at the end
        ]
    )
    build_id = await submit(body)
    await run_import(services, build_id)
    rows = await problems(services.database, build_id)
    assert [(row.idx, row.question, row.answer, row.system, row.meta) for row in rows] == [
        (0, "Q1", "A1", None, {"source": "gsm8k", "level": 3}),
        (1, "Q3", "A3", "S", {"x": 1}),
    ]
    bad = await bad_rows(services.database, build_id)
    assert [line for line, _ in bad] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13]
    reasons = dict(bad)
    assert "not JSON" in reasons[2]
    assert reasons[3] == "not an object but list"
    assert "answer" in reasons[4]
    assert "white space" in reasons[6]
    assert "NUL" in reasons[8]
    assert "NUL" in reasons[9]
    done = await build(services.database, build_id)
    assert (done.state, done.problems, done.bad_rows, done.import_line) == (BuildState.running, 2, 11, 14)


async def test_columns_may_have_other_names(services: Services, submit: Submit) -> None:
    body = b'{"prompt": "Q", "solution": "A", "question": "kept"}\n'
    build_id = await submit(body, columns={"question": "prompt", "answer": "solution"})
    await run_import(services, build_id)
    (row,) = await problems(services.database, build_id)
    assert (row.question, row.answer, row.meta) == ("Q", "A", {"question": "kept"})


async def test_a_text_beyond_the_limit_is_a_bad_row(services: Services, submit: Submit) -> None:
    most = services.settings.max_text_chars
    rows = [{"question": "Q" * (most + 1), "answer": "A"}, {"question": "Q" * most, "answer": "A"}]
    build_id = await submit(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    await run_import(services, build_id)
    assert len(await problems(services.database, build_id)) == 1
    assert await bad_rows(services.database, build_id) == [(1, f"question: longer than {most} characters")]


async def test_an_import_that_is_killed_goes_on_at_the_next_line(
    services: Services, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.settings.import_batch = 10
    build_id = await submit(lines(35) + b"bad\n" + lines(40, 35))
    written = 0

    async def killed(*args: Any, **options: Any) -> None:
        nonlocal written
        written += 1
        if written == 3:
            raise KeyError("SIGKILL")
        await take_in(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(intake, "take_in", killed)
        with pytest.raises(KeyError):
            await run_import(services, build_id)
    half = await build(services.database, build_id)
    assert (half.state, half.problems, half.import_line) == (BuildState.importing, 20, 20)
    async with services.database.begin() as session:  # the killed one's lease runs out
        past = text("now() - interval '1 second'")
        await session.execute(update(Build).where(Build.id == build_id).values(lease_until=past))
        await reap(session, max_barren=5)
    await run_import(services, build_id)
    rows = await problems(services.database, build_id)
    assert [(row.idx, row.question) for row in rows] == [(i, f"Q{i}") for i in range(40)]
    assert [line for line, _ in await bad_rows(services.database, build_id)] == [36]


async def test_two_workers_rung_for_one_import_do_it_once(services: Services, submit: Submit) -> None:
    build_id = await submit(lines(5))
    async with services.database.begin() as session:
        assert await claim_build(session, build_id, BuildState.importing, worker="other", seconds=60) is not None
    await run_import(services, build_id)
    assert await problems(services.database, build_id) == []


async def test_a_rung_import_that_is_done_is_left_alone(services: Services, submit: Submit) -> None:
    build_id = await submit(lines(5), n=1)
    await run_import(services, build_id)
    await run_import(services, build_id)
    assert len(await problems(services.database, build_id)) == 5
    async with services.database.begin() as session:
        assert len((await session.scalars(select(Shard).where(Shard.build_id == build_id))).all()) == 1


async def test_a_source_without_any_problem_fails_the_build(services: Services, submit: Submit) -> None:
    build_id = await submit(b"bad\n\nworse\n")
    await run_import(services, build_id)
    failed = await build(services.database, build_id)
    assert failed.state is BuildState.failed
    assert failed.error is not None
    assert failed.error["type"] == "no_problems"
    assert len(await bad_rows(services.database, build_id)) == 2


async def test_an_upload_that_is_gone_fails_the_build(services: Services, submit: Submit) -> None:
    build_id = await submit(lines(1))
    for entry in list(services.store.list("uploads")):
        services.store.remove(entry.uri)
    await run_import(services, build_id)
    failed = await build(services.database, build_id)
    assert failed.error is not None
    assert failed.error["type"] == "upload_missing"


async def test_kind_score_wants_an_explanation_in_each_row(services: Services, submit: Submit) -> None:
    body = b'{"question": "Q", "answer": "A", "explanation": "E"}\n{"question": "Q", "answer": "A"}\n'
    build_id = await submit(body, kind="score", n=1)
    await run_import(services, build_id)
    (row,) = await problems(services.database, build_id)
    assert row.explanation == "E"
    assert [line for line, _ in await bad_rows(services.database, build_id)] == [2]
