"""What Redis or Valkey says about itself. Blocking."""

from __future__ import annotations

from typing import Any

import redis
from kombu.exceptions import OperationalError

from rlt_client.schemas.health import BrokerHealth
from rlt_jobs.celery_app import depth, make_celery
from rlt_jobs.outbox import Queue
from rlt_jobs.settings import Settings

__all__ = ["ask", "depths"]

SECONDS = 2.0  # somebody waits for the answer


def ask(url: str) -> BrokerHealth:
    try:
        with redis.Redis.from_url(url, socket_timeout=SECONDS, socket_connect_timeout=SECONDS) as client:
            info: Any = client.info()
    except redis.RedisError as error:
        return BrokerHealth(ok=False, detail=f"{type(error).__name__}: {error}")
    version = info.get("valkey_version") or info.get("redis_version")
    return BrokerHealth(ok=True, version=version, maxmemory_policy=info.get("maxmemory_policy"))


def depths(settings: Settings) -> dict[str, int]:
    """Messages that wait, by queue; empty where the broker is away."""
    app = make_celery(settings)
    try:
        return {queue.value: depth(app, queue) for queue in Queue}
    except OperationalError:
        return {}
    finally:
        app.close()
