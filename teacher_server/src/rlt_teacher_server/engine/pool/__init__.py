"""Several engines that hold the same policies, as one: which of them a question's samples go to, what becomes of
samples whose engine dies, and how all of them are given other policies while requests run."""

from rlt_teacher_server.engine.pool.engines import Engines
from rlt_teacher_server.engine.pool.held import Held, PolicyReplaced
from rlt_teacher_server.engine.pool.options import Events, PoolOptions
from rlt_teacher_server.engine.pool.sessions import Group, Session

__all__ = ["Engines", "Events", "Group", "Held", "PolicyReplaced", "PoolOptions", "Session"]
