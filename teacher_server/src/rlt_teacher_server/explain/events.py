"""A listener that keeps what it hears for one reader, who may be slow.

Tokens cost next to nothing as they come: they are put aside, and become text when the reader takes them. The first of
each sample wakes the reader at once, the following ones an `interval` after its last take; everything else at once.
What waits is bounded by what the reply itself will hold: of each sample there is at most one delta, which grows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from rlt_client.schemas.explain import Delta, ExplainEvent, Explanation, Finished, Restarted, Scored, Started
from rlt_client.schemas.reward import Score
from rlt_teacher_server.engine.base import Watch
from rlt_teacher_server.explain.listener import Listener, Reason

__all__ = ["Mailbox", "Text", "interval"]

INTERVAL_S: Final = 0.05  # people see no difference below it
MOST_WRITES: Final = 1250
"""A second, of all streams together: each costs some 50 to 100 µs, whatever is in it."""


def interval(streams: int) -> float:
    """Seconds between two writes of one stream that hold nothing but deltas, where so many are open."""
    return max(INTERVAL_S, streams / MOST_WRITES)


class Text(Protocol):
    """Makes text of one sample's tokens as they come."""

    def feed(self, token_ids: Sequence[int], /) -> str:
        """What these tokens add to the explanation; what is not certain yet is held back."""

    def end(self) -> str:
        """What was held back, now that no more tokens come."""


@dataclass(slots=True, eq=False)
class _Tokens:
    """Of one sample, not taken yet."""

    index: int
    ids: list[int]
    ended: bool = False


class Mailbox(Listener):
    """Args:
    text: makes the text of a sample.
    first_token: called when the first token of all samples has come.
    interval: seconds between two takes for nothing but more tokens, as of now.
    """

    def __init__(
        self,
        text: Callable[[], Text],
        *,
        first_token: Callable[[], None] = lambda: None,
        interval: Callable[[], float] = lambda: INTERVAL_S,
    ) -> None:
        self._new_text = text
        self._first_token: Callable[[], None] | None = first_token
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._texts: dict[int, Text] = {}
        self._waiting: list[ExplainEvent | _Tokens] = []
        self._tokens: dict[int, _Tokens] = {}
        self._due = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._taken = float("-inf")

    def started(self, event: Started) -> None:
        self.put(event)

    def watch(self, index: int) -> Watch:
        return partial(self._hear, index)

    def restarted(self, index: int, reason: Reason) -> None:
        void = self._tokens.pop(index, None)
        if void is not None:
            self._waiting.remove(void)
        self._texts.pop(index, None)
        self.put(Restarted(index=index, reason=reason))

    def finished(self, explanation: Explanation) -> None:
        if explanation.index in self._texts:
            self._of(explanation.index).ended = True
        self.put(Finished(explanation=explanation))

    def scored(self, index: int, score: Score) -> None:
        self.put(Scored(index=index, score=score))

    def put(self, event: ExplainEvent) -> None:
        self._waiting.append(event)
        self._due.set()

    async def take(self, timeout: float | None = None) -> list[ExplainEvent]:
        """What has happened since the last call, as soon as something is due, or after `timeout` seconds."""
        bell = None if timeout is None else self._loop.call_later(timeout, self._due.set)
        try:
            await self._due.wait()
        finally:
            if bell is not None:
                bell.cancel()
        return self._take()

    def _hear(self, index: int, ids: Sequence[int]) -> None:
        heard = self._tokens.get(index)
        if heard is not None:
            heard.ids.extend(ids)
            return
        self._of(index).ids.extend(ids)
        if index in self._texts:
            self._wake_later()
        else:
            self._begin(index)

    def _begin(self, index: int) -> None:
        self._texts[index] = self._new_text()
        self._due.set()
        if self._first_token is not None:
            self._first_token()
            self._first_token = None

    def _of(self, index: int) -> _Tokens:
        """What waits of one sample."""
        found = self._tokens.get(index)
        if found is None:
            found = self._tokens[index] = _Tokens(index, [])
            self._waiting.append(found)
        return found

    def _wake_later(self) -> None:
        if self._alarm is None and not self._due.is_set():
            self._alarm = self._loop.call_at(self._taken + self._interval(), self._due.set)

    def _take(self) -> list[ExplainEvent]:
        self._due.clear()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        waiting, self._waiting = self._waiting, []
        self._tokens.clear()
        self._taken = self._loop.time()
        return list(self._events(waiting))

    def _events(self, waiting: Sequence[ExplainEvent | _Tokens]) -> Iterator[ExplainEvent]:
        for each in waiting:
            if not isinstance(each, _Tokens):
                yield each
                continue
            text = self._text_of(each)
            if text or each.ids:
                yield Delta(index=each.index, text=text, tokens=len(each.ids))

    def _text_of(self, tokens: _Tokens) -> str:
        text = self._texts[tokens.index]
        written = text.feed(tokens.ids)
        if not tokens.ended:
            return written
        del self._texts[tokens.index]
        return written + text.end()
