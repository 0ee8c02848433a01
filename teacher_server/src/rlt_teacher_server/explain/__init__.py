"""`/explain` and `/explain/batch`: from a question and its answer to ranked explanations.

plan → sampling (several policies, many samples, each read, tried again and scored on its own) → ranking → reply. What
happens meanwhile goes to a `Listener`; a streamed reply is one that keeps it for a reader (`events`).
"""

from rlt_teacher_server.explain.service import ExplainService
from rlt_teacher_server.explain.stream import ExplainStream

__all__ = ["ExplainService", "ExplainStream"]
