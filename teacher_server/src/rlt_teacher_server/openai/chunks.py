"""From the events of a stream to chunks. Pure: one writer a reply, told of each event in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rlt_client.errors import Unavailable, error_from_problem
from rlt_client.schemas.common import ModelRef, Problem
from rlt_client.schemas.explain import (
    Delta,
    Done,
    ExplainEvent,
    ExplainResponse,
    Explanation,
    Failed,
    Finished,
    Restarted,
    Scored,
    Started,
)
from rlt_teacher_server.openai.reading import Asked
from rlt_teacher_server.openai.replies import ChatCompletionChunk, ChoiceDelta, ChunkChoice
from rlt_teacher_server.openai.writing import (
    Head,
    LogprobsOf,
    details,
    finish_reason,
    raise_if_nothing,
    refusal,
    usage,
    whole,
)

__all__ = ["ChunkWriter"]


class ChunkWriter:
    """A choice's last chunk waits for its score where one was asked for; one that failed waits for the end, since a
    request of which every sample failed has failed itself.

    Args:
        logprobs: of a complete explanation; they come with its last chunk.
    """

    def __init__(self, head: Head, asked: Asked, logprobs: LogprobsOf) -> None:
        self._head = head
        self._asked = asked
        self._logprobs = logprobs
        self._policy = ModelRef(name="", revision="")
        self._format = ""
        self._written: dict[int, _Written] = {}
        self._open: dict[int, Explanation] = {}

    def chunks(self, event: ExplainEvent) -> Iterator[ChatCompletionChunk]:
        """Raises:
        APIError: the reply ends here, without its end.
        """
        match event:
            case Started():
                self._policy, self._format = event.policies[0], event.format.name
                self._written = {index: _Written() for index in range(event.samples)}
                yield from (self._chunk(index, ChoiceDelta(role="assistant", content="")) for index in self._written)
            case Delta():
                yield from self._content(event.index, self._written[event.index].add(event.text))
            case Restarted():
                self._written[event.index].restart()
            case Finished(explanation=explanation) if self._waits(explanation):
                self._open[explanation.index] = explanation
            case Finished(explanation=explanation):
                yield from self._finish(explanation)
            case Scored() if event.index in self._open:
                yield from self._finish(self._open[event.index].model_copy(update={"score": event.score}))
            case Done():
                yield from self._end(event.response)
            case Failed():
                raise error_from_problem(self._placed(event.problem))
            case _:  # a score that nothing waits for
                pass

    def _waits(self, explanation: Explanation) -> bool:
        return self._asked.explain.score or explanation.error is not None

    def _finish(self, explanation: Explanation) -> Iterator[ChatCompletionChunk]:
        index = explanation.index
        self._open.pop(index, None)
        if explanation.text is not None:
            yield from self._content(index, self._written[index].end(explanation.text))
        why = refusal(explanation)
        last = self._chunk(index, ChoiceDelta() if why is None else ChoiceDelta(refusal=why))
        last.choices[0].finish_reason = finish_reason(explanation.gen_status)
        last.choices[0].rlt = details(self._asked, explanation)
        if self._asked.logprobs and explanation.text is not None:
            last.choices[0].logprobs = self._logprobs(explanation, self._format)
        yield last

    def _end(self, response: ExplainResponse) -> Iterator[ChatCompletionChunk]:
        raise_if_nothing(response)
        for explanation in list(self._open.values()):
            yield from self._finish(explanation)
        if self._asked.include_usage:
            last = self._chunk(None, None)
            last.usage, last.rlt = usage(response.usage), whole(response)
            yield last

    def _content(self, index: int, text: str) -> Iterator[ChatCompletionChunk]:
        if text:
            yield self._chunk(index, ChoiceDelta(content=text))

    def _chunk(self, index: int | None, delta: ChoiceDelta | None) -> ChatCompletionChunk:
        choices = [ChunkChoice(index=index, delta=delta)] if index is not None and delta else []
        return ChatCompletionChunk(
            id=self._head.id,
            created=self._head.created,
            model=self._policy.name,
            system_fingerprint=self._policy.revision,
            choices=choices,
        )

    def _placed(self, problem: Problem) -> Problem:
        return problem.model_copy(update={"errors": self._asked.placed(problem.errors or [])})


@dataclass(slots=True)
class _Written:
    """A choice's text so far. It cannot be taken back: what begins anew has to begin with the same."""

    sent: str = ""
    again: str | None = field(default=None)
    """Since it began anew, while it has not come as far as before."""

    def add(self, text: str) -> str:
        """What is new of it.

        Raises:
            Unavailable: it differs from what was sent.
        """
        if self.again is None:
            self.sent += text
            return text
        self.again += text
        if len(self.again) < len(self.sent):
            _same(self.sent, self.again)
            return ""
        _same(self.again, self.sent)
        new = self.again[len(self.sent) :]
        self.sent, self.again = self.again, None
        return new

    def restart(self) -> None:
        self.again = ""

    def end(self, text: str) -> str:
        """What is missing of the whole text. Raises as `add`."""
        _same(text, self.sent)
        new = text[len(self.sent) :]
        self.sent, self.again = text, None
        return new


def _same(longer: str, shorter: str) -> None:
    if not longer.startswith(shorter):
        detail = "a sample had to begin anew and reads differently; what was streamed cannot be taken back: ask again"
        raise Unavailable(detail, type="sample_restarted")
