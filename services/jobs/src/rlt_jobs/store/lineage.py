"""Where a version comes from: all that it takes to tell two versions apart, or to make one again."""

from __future__ import annotations

from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession

from rlt_client.formats import Format, load_formats
from rlt_client.schemas.reward import ResolvedSpec
from rlt_jobs.builds.models import Build, Scorer
from rlt_jobs.builds.spec import Spec
from rlt_jobs.store import repository
from rlt_jobs.store.models import Upload

__all__ = ["of", "reward_of"]

_CODE: Final = ("rlt-jobs", "rlt-client")
_SCORER: Final = (
    *("student", "student_revision", "teacher_source", "teacher_revision", "kl"),
    *("student_temperature", "teacher_temperature", "dtype", "engine"),
)


async def of(
    session: AsyncSession, build: Build, scorer: Scorer | None, *, parent: int | None, formats: Path | None
) -> dict[str, Any]:
    """The lineage of the version that `build` publishes.

    Args:
        parent: the version that it is derived from.
        formats: a folder of prompt formats beside those that are shipped.
    """
    data = build if build.of_build_id is None else await session.get_one(Build, build.of_build_id)
    made = Spec.model_validate(data.spec)
    return {
        "build": build.spec,
        "code": {name: installed(name) for name in _CODE},
        "engines": sorted(data.engines),
        "format": _format(formats, scorer),
        "of_build": build.of_build_id,
        "parent": parent,
        "policy_revisions": await repository.policy_revisions(session, data.id),
        "reward": scorer.spec if scorer else None,
        "sampling": made.sampling.model_dump(mode="json"),
        "scorer": {name: getattr(scorer, name) for name in _SCORER} if scorer else None,
        "seed": made.seed,
        "selection": build.spec["selection"],
        "source": await _source(session, data),
        "upload": str(data.upload_id) if data.upload_id else None,
    }


def reward_of(scorer: Scorer | None) -> ResolvedSpec | None:
    """What the scorer's rewards were made with; None where that was not recorded."""
    return None if scorer is None or scorer.spec is None else ResolvedSpec.model_validate(scorer.spec)


async def _source(session: AsyncSession, build: Build) -> dict[str, Any] | None:
    """What the problems were read from; None for those that came with the request."""
    asked: dict[str, Any] | None = build.spec.get("source")
    if build.upload_id is None:
        return asked
    upload = await session.get_one(Upload, build.upload_id)
    file = {"name": upload.name, "bytes": upload.bytes, "sha256": upload.sha256, "format": upload.format}
    return {**(asked or {}), "upload": str(upload.id), **file}


def _format(folder: Path | None, scorer: Scorer | None) -> dict[str, Any] | None:
    """The format that the scores were made with; its student part too, where this service knows it."""
    if scorer is None:
        return None
    known = next((found for found in load_formats(folder).values() if found.hash == scorer.format_hash), None)
    student = known.student.model_dump() if isinstance(known, Format) else None
    return {"name": scorer.format_name, "hash": scorer.format_hash, "student": student}
