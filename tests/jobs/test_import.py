"""Reading an upload: resumable by line, and every row that is refused is told of."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select, text, update

from rlt_client.schemas.builds import BuildProblem, BuildRequest, BuildState, Source
from rlt_jobs.builds import intake, repository
from rlt_jobs.builds.importer import run_import
from rlt_jobs.builds.intake import take_in
from rlt_jobs.builds.models import Build, Event, Problem, Shard
from rlt_jobs.builds.spec import Spec, request_hash
from rlt_jobs.builds.work import Services
from rlt_jobs.database import Database
from rlt_jobs.leases import claim_build, reap
from rlt_jobs.store.files import Damaged, Store, StoreUnavailable
from rlt_jobs.store.repository import add_upload

pytestmark = pytest.mark.asyncio(loop_scope="module")


Submit = Callable[..., Awaitable[int]]


@pytest.fixture
def submit(database: Database, store: Store) -> Submit:
    """A build in state `importing` over a file of these bytes, or over the `path` or `hub` among the options."""

    async def make(body: bytes | None = None, **options: Any) -> int:
        upload_id = None
        if body is not None:
            upload_id = uuid.uuid4()
            with store.create(f"uploads/{upload_id}.jsonl") as pending:
                pending.writer.write(body)
            async with database.begin() as session:
                await add_upload(session, upload_id, "ann", "x.jsonl", pending.stored)
        place = {name: options.pop(name) for name in ("path", "hub", "columns", "limit") if name in options}
        request = BuildRequest(dataset="set", source=Source(upload=upload_id, **place), **options)
        spec = Spec.of(request)
        async with database.begin() as session:
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


async def abandoned(database: Database, build_id: int) -> None:
    """The lease of a worker that was killed runs out."""
    async with database.begin() as session:
        past = text("now() - interval '1 second'")
        await session.execute(update(Build).where(Build.id == build_id).values(lease_until=past))
        await reap(session, max_barren=5)


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
    await abandoned(services.database, build_id)
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


async def finished(services: Services, build_id: int) -> Build:
    await run_import(services, build_id)
    return await build(services.database, build_id)


async def events(database: Database, build_id: int, kind: str) -> list[str]:
    async with database.begin() as session:
        found = select(Event.detail).where(Event.build_id == build_id, Event.kind == kind).order_by(Event.id)
        return list(await session.scalars(found))


def rows(*problems: tuple[str, ...]) -> bytes:
    names = ("question", "answer", "system")
    return b"".join(json.dumps(dict(zip(names, row, strict=False))).encode() + b"\n" for row in problems)


async def test_the_same_problem_is_made_once(services: Services, submit: Submit) -> None:
    services.settings.import_batch = 3  # repeats within a batch and across batches
    body = rows(("Q", "A"), ("R", "A"), ("Q", "A"), ("Q", "B"), ("Q", "A", "S"), ("QA", ""), ("Q", "A"), ("R", "A"))
    made = await finished(services, await submit(body))
    stored = await problems(services.database, made.id)
    assert [(row.question, row.answer, row.system) for row in stored] == [
        ("Q", "A", None),
        ("R", "A", None),
        ("Q", "B", None),
        ("Q", "A", "S"),
    ]
    assert [row.idx for row in stored] == [0, 1, 2, 3]
    assert (made.problems, made.duplicates, made.bad_rows) == (4, 3, 1)
    assert await events(services.database, made.id, "duplicates") == [
        "3 rows repeat question, answer and system of an earlier one and were dropped"
    ]


async def test_traces_of_one_problem_know_the_first(services: Services, submit: Submit) -> None:
    services.settings.import_batch = 2
    given = [("Q", "E0"), ("R", "E1"), ("Q", "E2"), ("Q", "E3"), ("R", "E4")]
    body = b"".join(json.dumps({"question": q, "answer": "A", "explanation": e}).encode() + b"\n" for q, e in given)
    made = await finished(services, await submit(body, kind="score", n=1))
    stored = await problems(services.database, made.id)
    assert [(row.explanation, row.first_idx) for row in stored] == [
        ("E0", None),
        ("E1", None),
        ("E2", 0),
        ("E3", 0),
        ("E4", 1),
    ]
    assert (made.problems, made.duplicates) == (5, 3)


async def test_repeats_stay_where_that_is_asked_for(services: Services, submit: Submit) -> None:
    made = await finished(services, await submit(rows(("Q", "A"), ("Q", "A")), deduplicate=False))
    assert [row.first_idx for row in await problems(services.database, made.id)] == [None, None]
    assert (made.problems, made.duplicates) == (2, 0)


async def test_a_flood_of_bad_rows_is_counted_and_the_first_are_told(
    services: Services, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MAX_BAD_ROWS", 10)
    services.settings.import_batch = 4
    made = await finished(services, await submit(b"bad\n" * 33 + lines(1)))
    assert (made.state, made.bad_rows) == (BuildState.running, 33)
    assert [line for line, _ in await bad_rows(services.database, made.id)] == list(range(1, 11))
    (last,) = await events(services.database, made.id, "bad_rows")
    assert last == "10 refused rows are listed; further ones are only counted, in `bad_rows`"


async def test_a_limit_ends_the_reading_also_after_a_kill(services: Services, submit: Submit) -> None:
    services.settings.import_batch = 3
    build_id = await submit(lines(4) + b"bad\n" + lines(20, 4) + lines(4), limit=8)
    async with services.database.begin() as session:  # as if one batch had been written and its worker killed
        first = [BuildProblem(question=f"Q{i}", answer=f"A{i}") for i in range(3)]
        found = await session.get_one(Build, build_id)
        await take_in(session, found, first, deduplicate=True)
        found.import_line, found.import_offset = 3, len(lines(3))
    made = await finished(services, build_id)
    assert (made.problems, made.bad_rows, made.import_line) == (7, 1, 8)


@pytest.fixture
def data(services: Services, tmp_path: Path) -> Path:
    """A folder that builds may read."""
    services.settings.data_roots = [tmp_path]
    return tmp_path


async def test_a_parquet_file_is_imported_and_goes_on_in_mid_group_after_a_kill(
    services: Services, submit: Submit, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"question": [f"Q{i}" for i in range(1000)], "answer": ["A"] * 999 + [None]})
    pq.write_table(table, data / "x.parquet", row_group_size=300)
    services.settings.import_batch = 130
    build_id = await submit(path="x.parquet")
    written = 0

    async def killed(*args: Any, **options: Any) -> None:
        nonlocal written
        written += 1
        if written == 4:
            raise KeyError("SIGKILL")
        await take_in(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(intake, "take_in", killed)
        with pytest.raises(KeyError):
            await run_import(services, build_id)
    half = await build(services.database, build_id)
    assert (half.problems, half.import_line) == (390, 390)
    await abandoned(services.database, build_id)
    made = await finished(services, build_id)
    assert [row.question for row in await problems(services.database, build_id)] == [f"Q{i}" for i in range(999)]
    assert await bad_rows(services.database, build_id) == [(1000, "answer: Input should be a valid string")]
    assert (made.state, made.problems, made.import_line) == (BuildState.running, 999, 1000)


async def test_a_csv_file_of_a_path_is_imported_with_its_true_lines(
    services: Services, submit: Submit, data: Path
) -> None:
    (data / "x.csv").write_text('question,answer,level\n"two\nlines",A,3\n,A,1\nQ,A,\n')
    made = await finished(services, await submit(path="x.csv"))
    stored = await problems(services.database, made.id)
    assert [(row.question, row.meta) for row in stored] == [("two\nlines", {"level": "3"}), ("Q", None)]
    assert await bad_rows(services.database, made.id) == [(4, "question: Field required")]


@pytest.mark.parametrize(
    ("place", "type", "says"),
    [
        ({"path": "gone.csv"}, "path_missing", "gone.csv does not exist"),
        ({"path": "/etc/passwd"}, "path_not_allowed", "outside"),
        ({"path": "headless.csv"}, "missing_columns", "the columns are 'a', 'b'"),
        ({"path": "rowless.csv"}, "no_problems", "the source holds no rows"),
        ({"hub": {"name": "open-r1/some-set"}}, "hub_not_allowed", "reads nothing from the hub"),
    ],
    ids=["missing", "outside", "columns", "rows", "hub"],
)
async def test_a_source_that_cannot_be_used_fails_the_build_in_words(
    services: Services, submit: Submit, data: Path, place: dict[str, Any], type: str, says: str
) -> None:
    (data / "headless.csv").write_text("a,b\n1,2\n")
    (data / "rowless.csv").write_text("question,answer\n")
    failed = await finished(services, await submit(**place))
    assert failed.error is not None
    assert (failed.state, failed.error["type"]) == (BuildState.failed, type)
    assert says in failed.error["detail"]


async def test_a_store_that_is_away_leaves_the_import_to_the_next(
    services: Services, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_id = await submit(lines(5))

    def away(_: str) -> Any:
        raise StoreUnavailable("the store does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(services.store, "open", away)
        await run_import(services, build_id)
    waiting = await build(services.database, build_id)
    assert (waiting.state, waiting.lease_token, waiting.barren) == (BuildState.importing, None, 0)
    assert (await finished(services, build_id)).problems == 5


async def test_who_lost_the_lease_cannot_fail_what_another_one_imports(
    services: Services, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_id = await submit(lines(2))
    read = services.store.open

    def late(uri: str) -> Any:
        monkeypatch.setattr(services.store, "open", read)
        asyncio.run_coroutine_threadsafe(abandoned(services.database, build_id), loop).result(60)
        asyncio.run_coroutine_threadsafe(run_import(services, build_id), loop).result(60)
        raise Damaged(f"{uri}: no such file")

    loop = asyncio.get_running_loop()
    services.settings.control_seconds = 20  # the first one learns of nothing meanwhile
    monkeypatch.setattr(services.store, "open", late)
    await run_import(services, build_id)
    assert (await build(services.database, build_id)).state is BuildState.running


async def test_columns_of_a_build_that_an_older_service_accepted_are_heeded(services: Services, submit: Submit) -> None:
    build_id = await submit(b'{"ask": "Q", "answer": "A"}')
    async with services.database.begin() as session:
        old = await session.get_one(Build, build_id)
        old.spec = {**{k: v for k, v in old.spec.items() if k != "source"}, "columns": {"question": "ask"}}
    assert (await finished(services, build_id)).problems == 1


async def test_traces_come_out_of_their_tags(services: Services, submit: Submit) -> None:
    texts = [
        "because",
        "<think>\nbecause\n</think>\n\nThe answer is A.",
        "because</think>A",  # the chat template wrote the opening tag
        "<|begin_of_thought|>because<|end_of_thought|>\n\n<|begin_of_solution|>A<|end_of_solution|>",
        "<|begin_of_explanation|>because<|end_of_explanation|>",
        "because<|end_of_explanation|>",  # a teacher's completion: the held part stands in its prompt
        "<think>because",
    ]
    body = b"".join(
        json.dumps({"question": f"Q{i}", "answer": "A", "explanation": text}).encode() + b"\n"
        for i, text in enumerate(texts)
    )
    body += json.dumps({"question": "Q", "explanation": texts[3]}).encode()  # its answer is the trace's own
    made = await finished(services, await submit(body, kind="score", n=1))
    stored = await problems(services.database, made.id)
    assert [row.explanation for row in stored] == [
        "because",
        "\nbecause\n",
        "because",
        "because",
        "because",
        "\n\nbecause",
        "because",
    ]
    assert {row.answer for row in stored} == {"A"}
    assert await bad_rows(services.database, made.id) == [
        (7, "explanation: cut off: no '</think>' ends what '<think>' begins")
    ]
