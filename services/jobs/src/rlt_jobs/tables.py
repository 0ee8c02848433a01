"""Every table of the service, for migrations: importing this module fills `metadata`."""

from __future__ import annotations

from sqlalchemy import MetaData

from rlt_jobs import keys, outbox
from rlt_jobs.builds import models as builds
from rlt_jobs.builds import quotas
from rlt_jobs.database import Base
from rlt_jobs.store import models as store

__all__ = ["builds", "keys", "metadata", "outbox", "quotas", "store"]

metadata: MetaData = Base.metadata
