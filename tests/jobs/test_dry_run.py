"""A dry run: the counts of the build to come, five prompts and what they cost, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from rlt_client.aio import AsyncTeacherClient
from rlt_client.errors import InvalidRequest, NotFound
from rlt_client.formats import shipped_formats
from rlt_client.prompts import fill
from rlt_client.schemas.builds import BuildProblem, BuildRequest, BuildState
from rlt_jobs.builds import dry_run
from rlt_jobs.builds.dry_run import DryRunner, render
from rlt_jobs.builds.models import Build, Dataset, Event, Problem, Shard
from rlt_jobs.database import Database
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHARS_A_TOKEN = 4


def prompt_tokens(question: str, answer: str) -> int:
    return len(render(shipped_formats()["stratos"], BuildProblem(question=question, answer=answer))) // CHARS_A_TOKEN


@pytest.fixture
def runner(settings: Settings, database: Database, store: Store, platform: Any, tmp_path: Path) -> DryRunner:
    """Its teacher counts a token every four characters of the prompt; its data lie in `tmp_path`."""

    def counted(request: httpx.Request) -> httpx.Response:
        reply: httpx.Response = platform.handle(request)
        if reply.status_code != 200:
            return reply
        asked, body = json.loads(request.content), json.loads(reply.content)
        body["usage"]["prompt_tokens"] = prompt_tokens(asked["question"], asked["answer"])
        return httpx.Response(200, json=body)

    settings.data_roots = [tmp_path]
    return DryRunner(
        settings,
        database,
        store,
        lambda: AsyncTeacherClient("http://teacher", patience=0, transport=httpx.MockTransport(counted)),
    )


def request(**changes: Any) -> BuildRequest:
    problems = [{"question": f"How much is {i} + {i}?", "answer": f"{2 * i}"} for i in range(10)]
    return BuildRequest.model_validate({"dataset": "dry", "problems": problems, "n": 3, **changes})


async def stored(database: Database) -> list[int]:
    async with database.begin() as session:
        tables = (Build, Problem, Shard, Event, Dataset)
        return [await session.scalar(select(func.count()).select_from(table)) or 0 for table in tables]


async def test_a_dry_run_counts_and_leaves_nothing(runner: DryRunner, database: Database, platform: Any) -> None:
    before = await stored(database)
    told = await runner.run("dry", request(sampling={"max_tokens": 100}))
    assert (told.problems, told.samples, told.bad_rows, told.duplicates, told.rows_read) == (10, 30, 0, 0, 10)
    assert (told.whole, told.shards, told.completion_tokens) == (True, 1, 3000)
    assert (told.gpu_hours, told.tokens_per_second) == (None, None)  # this owner never built anything
    assert len(told.prompts) == 5
    assert "[user]\nHow much is 2 + 2?" in told.prompts[1]
    exact = 3 * sum(prompt_tokens(f"How much is {i} + {i}?", f"{2 * i}") for i in range(10))
    assert told.prompt_tokens == pytest.approx(exact, rel=0.01)
    assert [asked.max_tokens for asked in platform.requests] == [1] * 5
    assert await stored(database) == before


async def test_bad_rows_and_duplicates_of_a_source_are_told(runner: DryRunner, tmp_path: Path) -> None:
    rows = ["question,answer", "Q0,A0", "Q0,A0", "Q1", "Q0,A1"]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    told = await runner.run("dry", request(problems=None, source={"path": "rows.csv"}))
    assert (told.problems, told.duplicates, told.bad_rows, told.rows_read, told.whole) == (2, 1, 1, 4, True)
    assert [(event.kind, event.line, event.detail) for event in told.bad] == [
        ("bad_row", 4, "has 1 fields, and the header has 2")
    ]
    kept = await runner.run("dry", request(problems=None, source={"path": "rows.csv"}, deduplicate=False))
    assert (kept.problems, kept.duplicates) == (3, 0)


async def test_of_a_long_source_the_beginning_is_read(
    runner: DryRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "MOST_ROWS", 20)
    lines = [json.dumps({"question": f"Q{i}", "answer": "A"}) for i in range(50)]
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    told = await runner.run("dry", request(problems=None, source={"path": "long.jsonl"}))
    assert (told.problems, told.rows_read, told.whole) == (20, 20, False)
    short = await runner.run("dry", request(problems=None, source={"path": "long.jsonl", "limit": 7}))
    assert (short.problems, short.whole) == (7, True)


async def test_hours_follow_from_the_last_builds_of_the_same_policy(
    runner: DryRunner, database: Database, make_build: Callable[..., Any]
) -> None:
    build_id = await make_build(owner="paced", problems=4, n=2, policy="student-teacher")
    async with database.begin() as session:  # 8 samples of 100 tokens in 10 seconds
        await session.execute(update(Shard).where(Shard.build_id == build_id).values(complete=8, completion_tokens=800))
        ended = {"state": BuildState.done, "finished_at": Build.started_at + timedelta(seconds=10)}
        await session.execute(update(Build).where(Build.id == build_id).values(ended))
    told = await runner.run("paced", request(policy="student-teacher"))
    assert told.tokens_per_second == pytest.approx(80)
    assert told.gpu_hours == pytest.approx(30 * 100 / 80 / 3600)
    assert told.completion_tokens is None  # no budget was named
    tight = await runner.run("paced", request(policy="student-teacher", sampling={"max_tokens": 10}))
    assert tight.gpu_hours == pytest.approx(30 * 10 / 80 / 3600)  # no sample can be longer than its budget
    assert (await runner.run("paced", request())).gpu_hours is None  # another policy's pace says nothing
    assert (await runner.run("dry", request(policy="student-teacher"))).gpu_hours is None  # nor does another owner's


async def test_a_teacher_that_is_down_leaves_the_lengths_open(runner: DryRunner, platform: Any) -> None:
    platform.rules.append(lambda *_: _down())
    told = await runner.run("dry", request())
    assert (told.prompt_tokens, len(told.prompts), told.problems) == (None, 5, 10)


async def test_what_the_teacher_would_refuse_is_refused(runner: DryRunner, platform: Any) -> None:
    platform.rules.append(lambda *_: NotFound("there is no policy nobody", type="unknown_policy"))
    with pytest.raises(InvalidRequest, match="no policy nobody"):
        await runner.run("dry", request(policy="nobody"))


@pytest.mark.parametrize(
    ("changes", "type"),
    [
        ({"format": "unheard-of"}, "unknown_format"),
        ({"problems": None, "source": {"path": "nothing.csv"}}, "path_missing"),
        ({"problems": None, "source": {"path": "/etc/passwd"}}, "path_not_allowed"),
        ({"problems": None, "source": {"path": "empty.csv"}}, "empty_source"),
        ({"problems": None, "source": {"hub": {"name": "open-r1/some-set"}}}, "hub_not_allowed"),
    ],
)
async def test_what_no_build_could_use_is_refused(
    runner: DryRunner, tmp_path: Path, changes: dict[str, Any], type: str
) -> None:
    (tmp_path / "empty.csv").touch()
    with pytest.raises(InvalidRequest) as refused:
        await runner.run("dry", request(**changes))
    assert refused.value.type == type


async def test_traces_are_read_and_nobody_is_asked(runner: DryRunner, platform: Any, tmp_path: Path) -> None:
    rows = [{"question": "Q", "answer": "A", "explanation": text} for text in ("because", "<think>so", "as")]
    (tmp_path / "traces.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = await runner.run("dry", request(problems=None, n=1, kind="score", source={"path": "traces.jsonl"}))
    assert (told.problems, told.duplicates, told.bad_rows) == (2, 1, 1)
    assert (told.prompts, told.prompt_tokens, told.completion_tokens) == ([], None, 0)
    assert platform.requests == []


async def test_prompts_show_what_the_format_says() -> None:
    problem = BuildProblem(question="{answer}?", answer="42")
    formats = shipped_formats()
    teacher = formats["stratos"].teacher
    prefill = "".join(piece.text for piece in fill(teacher.prefill, question="{answer}?", answer="42"))
    assert render(formats["stratos"], problem) == (
        f"[system]\n{teacher.system}\n\n[user]\n{{answer}}?\n\n[assistant]\n{prefill}"
    )
    assert render(formats["mini"], problem) == "{answer}? = 42 > "  # base models read no roles


def _down() -> Exception:
    from rlt_client.errors import Unavailable

    return Unavailable("down")
