"""A completion that vLLM sends token by token, as server-sent events. Pure.

An event has one token, or several: with `--stream-interval`, or with speculation. The last one has the finish reason,
then comes `[DONE]`. A failure in mid-stream is an event of its own. Source:
`vllm/entrypoints/openai/completion/serving.py` of vLLM 0.31.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic_core import from_json

from rlt_client.errors import ItemError, Unavailable
from rlt_teacher_server.engine import wire
from rlt_teacher_server.errors import Reason, item_error

__all__ = ["Stream"]

FIELD: Final = b"data: "
LONGEST: Final = 2**24  # bytes of an event; the longest is the first, which has the ids of the prompt
END: Final = b"[DONE]"


class Stream:
    """Puts a completion together. Events are read as plain objects: models would double what one costs."""

    def __init__(self) -> None:
        self._rest = b""
        self._ids: list[int] = []
        self._logprobs: list[float | None] = []
        self._finish_reason: str | None = None

    def feed(self, piece: bytes) -> list[int]:
        """The ids in a piece of the body, which may begin and end anywhere.

        Raises:
            ItemError: this request failed, or the events are not vLLM's.
            Unavailable: the engine failed.
        """
        before = len(self._ids)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(FIELD) and not line.startswith(END, len(FIELD)):
                self._take(line[len(FIELD) :])
        if len(self._rest) > LONGEST:
            raise _foreign(self._rest)
        return self._ids[before:]

    def choice(self) -> wire.Choice:
        """The whole of it, as a single reply would have had it.

        Raises:
            ItemError: engine_failed.
            Unavailable: it broke off.
        """
        if self._finish_reason is None:
            raise Unavailable("the engine broke off in mid-sentence", type="engine_down", retry_after=1.0)
        logprobs = {"token_logprobs": self._logprobs}
        found = {"token_ids": self._ids, "logprobs": logprobs, "finish_reason": self._finish_reason}
        return wire.checked(wire.Choice, found)

    def _take(self, data: bytes) -> None:
        try:
            event: Any = from_json(data)
            if "error" in event:
                raise wire.refusal(int(event["error"]["code"]), data)
            for choice in event["choices"]:
                self._add(choice)
        except (ValueError, LookupError, TypeError) as error:
            raise _foreign(data) from error

    def _add(self, choice: Any) -> None:
        ids, logprobs = choice["token_ids"], choice["logprobs"]
        if ids is None or logprobs is None:
            raise wire.too_old()
        if ids:
            self._ids += ids
            self._logprobs += logprobs["token_logprobs"]
        self._finish_reason = choice["finish_reason"] or self._finish_reason


def _foreign(data: bytes) -> ItemError:
    return item_error(Reason.engine_failed, f"not an event of a vLLM server: {data[:100]!r}")
