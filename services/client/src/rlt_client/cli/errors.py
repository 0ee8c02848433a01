"""Errors as people meet them in a terminal: one line, an exit code, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rlt_client.errors import Forbidden, RLTError, TransportError, Unauthorized

__all__ = ["FAILED", "UNREACHED", "CommandFailed", "told_in_a_line"]

FAILED, UNREACHED, INTERRUPTED = 1, 3, 130


class CommandFailed(RLTError):
    """What the command was asked for could not be done; the message is for the person who asked."""


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """End the program with one line for what its user can mend. Bugs keep their traceback."""
    try:
        yield
    except BrokenPipeError:  # `rlt … | head`
        sys.stderr.close()
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (RLTError, OSError) as error:
        sys.stderr.write(f"rlt: error: {_message(error)}\n")
        sys.exit(UNREACHED if isinstance(error, TransportError) else FAILED)


def _message(error: Exception) -> str:
    if isinstance(error, Unauthorized):
        return f"{error} (give a key: --key or RLT_KEY)"
    if isinstance(error, Forbidden):
        return f"{error} (the key needs another scope: `rlt keys create` makes one)"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
