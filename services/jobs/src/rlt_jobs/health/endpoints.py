"""`/health/details`."""

from __future__ import annotations

from rlt_client.schemas.common import Scope
from rlt_client.schemas.health import JobsHealth
from rlt_jobs.health.service import HealthService
from rlt_service.auth import requires
from rlt_service.routing import Router

__all__ = ["router"]


def router(service: HealthService) -> Router:
    routes = Router(prefix="/health", tags=["health"], dependencies=[requires(Scope.admin)])

    @routes.get("/details")
    async def health_details() -> JobsHealth:
        """The standing of the service and of what it needs. Always 200: what is wrong stands in the reply."""
        return await service.details()

    return routes
