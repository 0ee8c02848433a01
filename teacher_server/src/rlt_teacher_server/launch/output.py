"""What a vLLM server writes: into our log line by line, and remembered for the moment when it fails."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

__all__ = ["Output", "cause", "lines"]

log = logging.getLogger(__name__)

KEPT: Final = 500  # lines: two tracebacks of two processes, one of which has the cause
LONGEST: Final = 16_384  # bytes of a line that does not end: a progress bar, or rubbish
PREFIX: Final = re.compile(r"^(?:\(\w+ pid=\d+\) )?(?:(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[\S+\] ?)?")
REFUSED: Final = re.compile(r"^\S+(?: serve)?: error: (.+)")
RAISED: Final = re.compile(r"^((?:\w+\.)*\w*(?:Error|Exception)): (.+)")
UNKNOWN: Final = re.compile(r"unrecognized arguments?: (.+)")


class Output:
    """Everything that one run of a server writes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last: deque[str] = deque(maxlen=KEPT)

    async def read(self, stream: asyncio.StreamReader) -> None:
        """To the end. Levels are vLLM's own; what has none, tracebacks of libraries for example, is at info."""
        async for line in lines(stream):
            level, text = _split(line)
            self._last.append(text)
            log.log(level, text, extra={"engine": self._name})

    def cause(self) -> str:
        return cause(self._last)


async def lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines as they end, by a newline or a return; empty ones are left out."""
    rest = b""
    while chunk := await stream.read(65_536):
        *whole, rest = re.split(rb"[\r\n]+", rest + chunk)
        if len(rest) > LONGEST:
            whole, rest = [*whole, rest], b""
        for line in whole:
            if text := line.decode(errors="replace").rstrip():
                yield text
    if text := rest.decode(errors="replace").rstrip():
        yield text


def _split(line: str) -> tuple[int, str]:
    """The level that a line of vLLM's log names, and what it says."""
    found = PREFIX.match(line)
    assert found is not None  # every part of it is optional
    return logging.getLevelNamesMapping()[found[1] or "INFO"], line[found.end() :]


def cause(written: Iterable[str]) -> str:
    """Why it ended, in its own words: a flag it refused, the first exception of all that followed, or its last line."""
    said = [line for line in written if line.strip()]
    for i, line in enumerate(said):
        if refused := REFUSED.match(line):
            return _refusal(refused[1])
        if raised := RAISED.match(line):
            return _exception(said[i:], raised)
    return said[-1].strip() if said else "it wrote nothing"


def _refusal(words: str) -> str:
    unknown = UNKNOWN.search(words)
    if unknown is None:
        return words
    flags = [word for word in unknown[1].split() if word.startswith("-")] or [unknown[1]]
    return f"it does not know {', '.join(flags)}"


def _exception(rest: Sequence[str], raised: re.Match[str]) -> str:
    """pydantic says what is wrong in the line after."""
    if raised[1].endswith("ValidationError") and len(rest) > 1:
        return rest[1].strip().removeprefix("Value error, ").split(" [type=")[0]
    return f"{raised[1].rsplit('.', 1)[-1]}: {raised[2]}"
