"""What the API does with exports: whose version, as what, and from where."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from rlt_client.schemas.builds import ExportFormat, ExportShape
from rlt_jobs.builds.views import scorer_view
from rlt_jobs.database import Database
from rlt_jobs.settings import Settings
from rlt_jobs.store import repository
from rlt_jobs.store.card import Facts
from rlt_jobs.store.export import Export
from rlt_jobs.store.exports import Exports, Key
from rlt_jobs.store.files import Store, Stored
from rlt_jobs.store.shapes import Shape, student_format

__all__ = ["ExportService", "Exported"]


@dataclass(frozen=True, slots=True)
class Exported:
    """Args:
    name: for a file of it.
    content: where it lies, or bytes that come once; None if there is nothing yet.
    """

    name: str
    format: ExportFormat
    content: Stored | AsyncIterator[bytes] | None
    exports: Exports

    def pieces(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Bytes start … end−1, or all that come."""
        assert self.content is not None
        return self.exports.read(self.content, start, end) if isinstance(self.content, Stored) else self.content


class ExportService:
    def __init__(self, settings: Settings, database: Database, store: Store) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._exports = Exports(database, store)

    async def close(self) -> None:
        await self._exports.close()

    async def describe(self, owner: str, version_id: int, format: ExportFormat, shape: ExportShape) -> Exported:
        """What is known of an export without making it. Raises `NotFound`."""
        async with self._database.begin() as session:
            version, dataset, _ = await repository.find_version(session, version_id, owner)
        content = await self._exports.stored(Key(version_id, format, shape))
        return Exported(f"{dataset.name}-v{version.number}", format, content, self._exports)

    async def export(
        self, owner: str, version_id: int, format: ExportFormat, shape: ExportShape, *, along: bool
    ) -> Exported:
        """Args:
            along: whether bytes may come before the whole is there.

        Raises:
            NotFound, Conflict: the format that the messages need is not known.
            InternalError: a file of the version is missing or damaged.
            Unavailable: it is being written, or the store cannot be read.
        """
        found = await self.describe(owner, version_id, format, shape)
        if found.content is not None:
            return found
        export = await self._make(owner, version_id, shape)
        content = await self._exports.fetch(Key(version_id, format, shape), export, along=along)
        return Exported(found.name, format, content, self._exports)

    async def _make(self, owner: str, version_id: int, shape: ExportShape) -> Export:
        async with self._database.begin() as session:
            version, dataset, scorer = await repository.find_version(session, version_id, owner)
            files = await repository.version_files(session, version_id)
        view = scorer_view(scorer)
        facts = Facts(
            dataset=dataset.name,
            number=version.number,
            parent=version.parent_id,
            rows=version.rows,
            shape=shape,
            selection=version.selection,
            scorer=view.model_dump() if view else None,
            counts=version.counts,
            lineage=version.lineage,
            manifest_sha256=version.manifest_sha256,
        )
        student = None if shape is ExportShape.raw else student_format(version.lineage, self._settings.formats)
        return Export(
            store=self._store,
            manifest=Stored(version.manifest_uri, version.manifest_bytes, version.manifest_sha256),
            files={file.id: Stored(file.uri, file.bytes, file.sha256) for file in files},
            shape=Shape(shape, student),
            facts=facts,
        )
