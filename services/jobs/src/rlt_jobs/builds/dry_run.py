"""What a build would do, told without doing it: its beginning is read, a few prompts are counted, nothing is stored."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.aio import AsyncTeacherClient
from rlt_client.errors import InvalidRequest, NotFound, RLTError, Unavailable
from rlt_client.formats import Format, load_formats
from rlt_client.prompts import fill
from rlt_client.schemas.builds import BuildEvent, BuildKind, BuildProblem, BuildRequest, BuildState, DryRun
from rlt_client.schemas.common import FieldError
from rlt_client.schemas.explain import ExplainRequest, ExplainResponse
from rlt_jobs.builds.admission import Admission
from rlt_jobs.builds.models import Build
from rlt_jobs.builds.repository import problem_hash, problems_of_shard, totals
from rlt_jobs.builds.sources.opening import Sources, Stored
from rlt_jobs.builds.sources.problems import Batch, ProblemReader, batches
from rlt_jobs.builds.sources.rows import START, SourceError
from rlt_jobs.database import Database
from rlt_jobs.settings import Settings
from rlt_jobs.store.files import Store
from rlt_service.secret_files import secret

__all__ = ["DryRunner", "render"]

MOST_ROWS = 10_000  # read of a source: a second's work
MOST_BAD = 50  # refused rows that are shown
PROMPTS = 5
LAST_BUILDS = 5  # that the pace is taken from
ASK_SECONDS = 20.0  # for the lengths of the prompts; without an answer they are not known
DEFAULT_FORMAT = "stratos"  # of teacher and reward server, where they are not told another


@dataclass(frozen=True, slots=True)
class Pace:
    """Of an owner's last builds."""

    tokens_per_second: float
    tokens_per_sample: float


class DryRunner:
    """Args:
    teacher: makes a client of the teacher server; the settings' own if left out.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: Store,
        teacher: Callable[[], AsyncTeacherClient] | None = None,
    ) -> None:
        self._settings = settings
        self._database = database
        self._admission = Admission(settings, store)
        self._sources = Sources(settings, store)
        self._teacher = teacher or self._client

    async def run(self, owner: str, request: BuildRequest) -> DryRun:
        """Read at most 10,000 rows of the source; ask the teacher for five prompts' lengths.

        Raises:
            InvalidRequest: what the build would be refused or would fail for, whatever its rows are.
            Unavailable: the hub or the store cannot be reached.
        """
        batch = await self._begin(owner, request)
        problems, duplicates = _distinct(batch.problems, request)
        generates = request.kind is BuildKind.generate
        shown = _spread(problems) if generates else []
        replies = await self._ask(request, shown)
        format = self._format(request, replies)
        prompts = [render(format, problem) for problem in shown]
        async with self._database.begin() as session:
            pace = await _pace(session, owner, request.policy) if generates else None
        samples = len(problems) * request.n
        most = _budget(request, samples)
        return DryRun(
            problems=len(problems),
            samples=samples,
            bad_rows=len(batch.bad),
            bad=_events(batch.bad),
            duplicates=duplicates,
            rows_read=len(batch.problems) + len(batch.bad),
            whole=batch.ended,
            prompts=prompts,
            prompt_tokens=_prompt_tokens(problems, shown, prompts, replies, request.n),
            completion_tokens=most,
            gpu_hours=_gpu_hours(samples, most, pace),
            tokens_per_second=pace.tokens_per_second if pace else None,
            shards=math.ceil(len(problems) / problems_of_shard(len(problems), request.n, self._settings.shard_samples)),
        )

    async def _begin(self, owner: str, request: BuildRequest) -> Batch:
        """The problems, or the beginning of their source."""
        inline = await asyncio.to_thread(self._admission.check, request)
        source = request.source
        if source is None:
            return Batch(START, problems=inline, ended=True)
        upload = None
        if source.upload is not None:
            async with self._database.begin() as session:
                upload = Stored.of(await self._admission.upload(session, source.upload, owner))
        formats = load_formats(self._settings.formats)
        reader = ProblemReader(source, request.kind, formats, request.format, self._settings.max_text_chars)
        rows = self._sources.rows(source, request.kind, upload, START)
        waiting = batches(rows, reader, START, most_rows=MOST_ROWS, limit=source.limit)
        try:
            return await asyncio.to_thread(next, waiting)
        except SourceError as error:
            if error.type == "hub_unavailable":
                raise Unavailable(str(error), type=error.type) from error
            raise InvalidRequest(str(error), type=error.type) from error

    async def _ask(self, request: BuildRequest, shown: Sequence[BuildProblem]) -> list[ExplainResponse | None]:
        """One token of each: what the teacher says of the prompt. Raises `InvalidRequest` for what it will not do."""
        async with self._teacher() as teacher:
            return await asyncio.gather(*(_measure(teacher, request, problem) for problem in shown))

    def _client(self) -> AsyncTeacherClient:
        key = secret(self._settings, "teacher_key")
        return AsyncTeacherClient(self._settings.teacher_url, key=key, deadline=ASK_SECONDS, patience=0)

    def _format(self, request: BuildRequest, replies: Sequence[ExplainResponse | None]) -> Format:
        formats = load_formats(self._settings.formats)
        told = next((reply.format.name for reply in replies if reply is not None), DEFAULT_FORMAT)
        name = request.format or told
        if name not in formats:
            detail = f"this service knows no format {name!r}, but {', '.join(sorted(formats))}"
            raise InvalidRequest(errors=[FieldError(pointer="/format", detail=detail)], type="unknown_format")
        return formats[name]


async def _measure(teacher: AsyncTeacherClient, request: BuildRequest, problem: BuildProblem) -> ExplainResponse | None:
    wanted = ExplainRequest(
        question=problem.question, answer=problem.answer, max_tokens=1, format=request.format, policy=request.policy
    )
    try:
        return await teacher.explain(wanted)
    except (InvalidRequest, NotFound) as error:
        if any(field.pointer in ("/question", "/answer") for field in error.errors):
            return None  # this one's own fault; others may be taken
        raise InvalidRequest(f"the teacher refuses such a build: {error}", type=error.type) from error
    except RLTError:
        return None  # down, busy or slow: the lengths are not known


def render(format: Format, problem: BuildProblem) -> str:
    """What the teacher reads, for people: a chat's messages under their roles, without the model's own template."""
    part, values = format.teacher, {"question": problem.question, "answer": problem.answer}
    system, user, prefill = (
        "".join(piece.text for piece in fill(text, **values)) for text in (part.system, part.user, part.prefill)
    )
    if format.chat == "none":
        return system + user + prefill
    turns = [("system", system), ("user", user), ("assistant", prefill)]
    return "\n\n".join(f"[{role}]\n{text}" for role, text in turns if text)


def _distinct(problems: Sequence[BuildProblem], request: BuildRequest) -> tuple[list[BuildProblem], int]:
    """(problems that the build would have, rows that repeat an earlier one)."""
    if not request.deduplicate:
        return list(problems), 0
    first: dict[bytes, BuildProblem] = {}
    for problem in problems:
        first.setdefault(problem_hash(problem), problem)
    kept = problems if request.kind is BuildKind.score else first.values()
    return list(kept), len(problems) - len(first)


def _spread(problems: Sequence[BuildProblem]) -> list[BuildProblem]:
    """Five from all over them, for the beginning of a file is often of one kind."""
    count = min(PROMPTS, len(problems))
    return [problems[index * len(problems) // count] for index in range(count)]


def _events(bad: Sequence[tuple[int, str]]) -> list[BuildEvent]:
    now = datetime.now(UTC)
    shown = enumerate(bad[:MOST_BAD], 1)
    return [BuildEvent(id=id, at=now, kind="bad_row", line=line, detail=why) for id, (line, why) in shown]


def _prompt_tokens(
    problems: Sequence[BuildProblem],
    shown: Sequence[BuildProblem],
    prompts: Sequence[str],
    replies: Sequence[ExplainResponse | None],
    n: int,
) -> int | None:
    """Of all samples: the counted prompts' tokens a character, times the characters of all prompts."""
    counted = [
        (prompt, problem, reply.usage.prompt_tokens)
        for prompt, problem, reply in zip(prompts, shown, replies, strict=True)
        if reply is not None
    ]
    if not counted:
        return None
    written = sum(len(prompt) for prompt, _, _ in counted)
    around = (written - sum(_chars(problem) for _, problem, _ in counted)) / len(counted)
    characters = sum(map(_chars, problems)) + around * len(problems)
    return round(characters * sum(tokens for _, _, tokens in counted) / written) * n


def _chars(problem: BuildProblem) -> int:
    return len(problem.question) + len(problem.answer)


def _budget(request: BuildRequest, samples: int) -> int | None:
    if request.kind is BuildKind.score:
        return 0
    return None if request.sampling.max_tokens is None else request.sampling.max_tokens * samples


def _gpu_hours(samples: int, most: int | None, pace: Pace | None) -> float | None:
    """Hours of the teacher's machine, if samples are as long as those of the last builds and within their budget."""
    if pace is None:
        return None
    expected = samples * pace.tokens_per_sample
    return (expected if most is None else min(expected, most)) / pace.tokens_per_second / 3600


async def _pace(session: AsyncSession, owner: str, policy: str | None) -> Pace | None:
    last = (
        select(Build.id, Build.started_at, Build.finished_at)
        .where(
            Build.owner == owner,
            Build.kind == BuildKind.generate,
            Build.state == BuildState.done,
            Build.spec["policy"].astext.is_not_distinct_from(policy),
        )
        .order_by(Build.id.desc())
        .limit(LAST_BUILDS)
    )
    rows = (await session.execute(last)).all()
    made = (await totals(session, [row.id for row in rows])).values()
    seconds = sum((row.finished_at - row.started_at).total_seconds() for row in rows)
    tokens, samples = sum(found.completion_tokens for found in made), sum(sum(found.gen.values()) for found in made)
    if not tokens or seconds <= 0:
        return None
    return Pace(tokens / seconds, tokens / samples)
