"""Answers compared as mathematics, in a process of its own that is ended where a comparison takes too long.

math-verify bounds its time by signals, which work in a main thread alone and do not interrupt a power of large numbers.
"""

from __future__ import annotations

import atexit
import json
import logging
import re
import resource
import select
import subprocess
import sys
import threading
from functools import cache
from typing import Any, Final

from rlt_trainer.evaluate.boxed import last_boxed

__all__ = ["Mathematician", "equal"]

LIMIT_S: Final = 10.0  # of one comparison; usual ones take 0.01 to 0.5 s
START_S: Final = 120.0  # sympy is imported in 1 s, on a busy machine much later
MEMORY: Final = 4 << 30  # bytes of address space: 9^9^9 must not take the machine's
READY: Final = b"ready\n"
_DELIMITED: Final = re.compile(r"\\boxed|\\fbox|\$|\\\(|\\\[|\\begin\{")
_PROSE: Final = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+(?:[A-Za-z]+\s+)*[^\sA-Za-z]|[A-Za-z]{2,}[ \t]+[A-Za-z]{2,}")


def equal(given: str, right: str) -> bool | None:
    """Whether two answers are equal as mathematics; None where that could not be found out in `LIMIT_S`."""
    if given.split() == right.split():
        return True
    return _shared().equal(given, right)


@cache
def _shared() -> Mathematician:
    one = Mathematician()
    atexit.register(one.close)
    return one


class Mathematician:
    """Compares one pair at a time, for any thread. Its process is started at the first, and anew after it was ended."""

    def __init__(self, limit: float = LIMIT_S) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def equal(self, given: str, right: str) -> bool | None:
        question = json.dumps([given, right]).encode() + b"\n"
        with self._lock:
            try:
                process = self._process or self._started()
                _pipe(process.stdin).write(question)
                answer = _line(process, self._limit)
            except BrokenPipeError:
                answer = b""
            if not answer:
                self._end()
                return None
        told: bool | None = json.loads(answer)
        return told

    def close(self) -> None:
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", __spec__.name]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        if _line(self._process, START_S) != READY:
            self._end()
            raise RuntimeError(f"{' '.join(argv)} did not start: is math-verify installed?")
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Empty where none comes in time, or ever."""
    pipe = _pipe(process.stdout)
    ready, _, _ = select.select([pipe], [], [], seconds)
    line: bytes = pipe.readline() if ready else b""
    return line


def _pipe(pipe: Any) -> Any:
    assert pipe is not None  # it was asked for
    return pipe


def serve() -> None:
    """Answer each line of two texts with true, false, or null where the mathematics failed."""
    from math_verify import parse  # noqa: F401  # before READY, so that the first comparison is not charged with it

    logging.disable()  # it warns of each text that it cannot read
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        answer = _compared(*json.loads(line))
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def _compared(given: str, right: str) -> bool | None:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    kinds = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    try:
        wanted, got = (parse(delimited(text), kinds, parsing_timeout=None) for text in (right, given))
        return bool(verify(wanted, got, timeout_seconds=None))
    except (MemoryError, RecursionError, ArithmeticError):
        return None


def delimited(text: str) -> str:
    r"""What is boxed, or a bare formula, between dollars; prose stays as it is.

    Of a bare `3\sqrt{2}` math-verify would see the 3 only.
    """
    boxed = last_boxed(text)
    if boxed is None and (_DELIMITED.search(text) or _PROSE.search(text)):
        return text
    return f"${(boxed or text).strip().strip('$')}$"


if __name__ == "__main__":
    serve()
