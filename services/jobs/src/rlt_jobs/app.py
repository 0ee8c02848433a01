"""The API as an app. Building it opens nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from rlt_client.errors import Unavailable
from rlt_jobs import schema
from rlt_jobs.builds import derived_endpoints, following_endpoints
from rlt_jobs.builds import endpoints as build_endpoints
from rlt_jobs.builds.derived import DerivedBuilds
from rlt_jobs.builds.report import Reports
from rlt_jobs.builds.retry import Retries
from rlt_jobs.builds.service import BuildService
from rlt_jobs.builds.streaming import Streams
from rlt_jobs.database import Database
from rlt_jobs.health import endpoints as health_endpoints
from rlt_jobs.health.service import HealthService, store_health
from rlt_jobs.keys import DatabaseKeys
from rlt_jobs.metrics import Backlog
from rlt_jobs.schema import State
from rlt_jobs.settings import Settings
from rlt_jobs.store import delete_endpoints, downloads
from rlt_jobs.store import endpoints as store_endpoints
from rlt_jobs.store.deleting import Deletions
from rlt_jobs.store.exporting import ExportService
from rlt_jobs.store.files import Store
from rlt_jobs.store.service import StoreService
from rlt_service.app import create_app
from rlt_service.health import Check
from rlt_service.key_files import KeyFiles
from rlt_service.keys import ChainedKeys, KeyStore
from rlt_service.metrics import Metrics

__all__ = ["build"]


def build(settings: Settings) -> FastAPI:
    """Raises `BadKeys` for keys that cannot be read."""
    database = Database(settings.database_url, name="rlt-jobs api")
    store = Store(settings.store, endpoint_url=settings.store_endpoint)
    exports = ExportService(settings, database, store)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await exports.close()
        await database.close()

    async def ready() -> Mapping[str, Check]:
        return {"database": await _database_check(database), "store": await _store_check(store)}

    builds = BuildService(settings, database, store)
    metrics = Metrics()
    metrics.refresh = Backlog(metrics, database, store).refresh
    return create_app(
        title="rlt-jobs",
        version=version("rlt-jobs"),
        settings=settings,
        routers=[
            build_endpoints.router(builds),
            derived_endpoints.router(DerivedBuilds(settings, database), builds),
            following_endpoints.router(
                Reports(database, builds), Retries(settings, database, builds), Streams(database, builds)
            ),
            store_endpoints.router(StoreService(settings, database, store)),
            delete_endpoints.router(Deletions(database)),
            downloads.router(exports),
            health_endpoints.router(HealthService(settings, database, store)),
        ],
        lifespan=lifespan,
        ready=ready,
        metrics=metrics,
        keystore=_keystore(settings, database),
        description="Builds of data sets: problems in, the best explanations of each out.",
    )


def _keystore(settings: Settings, database: Database) -> KeyStore | None:
    """Keys of the settings, then, where asked for, those of the database; None leaves it to the settings."""
    if not settings.database_keys:
        return None
    return ChainedKeys([KeyFiles.of(settings), DatabaseKeys(database)])


async def _database_check(database: Database) -> Check:
    try:
        revision = await schema.revision_of(database)
    except Unavailable as error:
        return Check(ok=False, detail=error.detail)
    return Check(ok=schema.state(revision) in (State.same, State.newer), detail=schema.words(revision))


async def _store_check(store: Store) -> Check:
    health = await store_health(store)
    return Check(ok=health.ok, detail=health.detail)
