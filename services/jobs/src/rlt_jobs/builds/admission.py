"""What can be known of a build's problems or source before it is accepted."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.errors import InvalidRequest
from rlt_client.formats import FormatError, load_formats
from rlt_client.schemas.builds import BuildKind, BuildProblem, BuildRequest
from rlt_client.schemas.common import FieldError
from rlt_jobs.builds.sources.opening import Sources
from rlt_jobs.builds.sources.rows import TEXTS
from rlt_jobs.builds.sources.traces import TraceReader
from rlt_jobs.settings import Settings
from rlt_jobs.store import repository as stored
from rlt_jobs.store.files import Store
from rlt_jobs.store.models import Upload
from rlt_jobs.store.selecting import check_selection

__all__ = ["Admission"]

MOST_ERRORS = 50  # of one reply: who sends worse knows by then


class Admission:
    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._sources = Sources(settings, store)

    def check(self, request: BuildRequest) -> list[BuildProblem]:
        """The inline problems, their explanations taken out of their tags; of a source, looks whether it is there.

        Raises:
            InvalidRequest: a text that is too long, a trace that was cut off, a source that may not be read, a
                selection by what the reward does not have.
        """
        check_selection(request.selection, request.spec)
        if request.source is not None:
            self._sources.check(request.source)
            return []
        problems = request.problems or []
        errors = [error for index, problem in enumerate(problems) for error in self._too_long(index, problem)]
        if request.kind is BuildKind.score and not errors:
            problems, errors = self._traced(problems, request.format)
        if errors:
            raise InvalidRequest(errors=errors[:MOST_ERRORS])
        return problems

    async def upload(self, session: AsyncSession, upload_id: UUID, owner: str) -> Upload:
        """Raises `InvalidRequest` for one that the owner does not have."""
        found = await stored.upload(session, upload_id, owner)
        if found is None:
            error = FieldError(pointer="/source/upload", detail="there is no such upload")
            raise InvalidRequest(errors=[error], type="unknown_upload")
        return found

    def _too_long(self, index: int, problem: BuildProblem) -> list[FieldError]:
        most = self._settings.max_text_chars
        detail = f"longer than {most} characters"
        long = [name for name in TEXTS if len(getattr(problem, name) or "") > most]
        return [FieldError(pointer=f"/problems/{index}/{name}", detail=detail) for name in long]

    def _traced(self, problems: list[BuildProblem], format: str | None) -> tuple[list[BuildProblem], list[FieldError]]:
        reader = TraceReader(load_formats(self._settings.formats), format)
        traced: list[BuildProblem] = []
        errors: list[FieldError] = []
        for index, problem in enumerate(problems):
            try:
                trace = reader.read(problem.explanation or "")
            except FormatError as error:
                errors.append(FieldError(pointer=f"/problems/{index}/explanation", detail=str(error)))
                continue
            traced.append(problem.model_copy(update={"explanation": trace.explanation}))
        return traced, errors
