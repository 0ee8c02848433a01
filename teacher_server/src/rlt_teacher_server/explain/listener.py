"""Who hears what happens while a request is worked on."""

from __future__ import annotations

from typing import Literal

from rlt_client.schemas.explain import Explanation, Started
from rlt_client.schemas.reward import Score
from rlt_teacher_server.engine.base import Watch

__all__ = ["Listener", "Reason"]

Reason = Literal["truncated", "engine_down"]


class Listener:
    """Told of everything in the event loop, in the order in which it happens. This one does nothing with it."""

    def started(self, event: Started) -> None:
        """What is going to be sampled; the first."""

    def watch(self, index: int) -> Watch | None:
        """Who wants the tokens of a sample while it is generated; engines do less where nobody does."""
        del index
        return None

    def restarted(self, index: int, reason: Reason) -> None:
        """A sample begins anew: what it wrote is void."""

    def finished(self, explanation: Explanation) -> None:
        """A sample is complete, or has failed. It has no score yet."""

    def scored(self, index: int, score: Score) -> None:
        """The score of a finished one."""
