"""Why vLLM cannot be started, in words for the person who asked for it."""

from __future__ import annotations

from rlt_client.errors import RLTError

__all__ = ["LaunchFailed"]


class LaunchFailed(RLTError):
    """No start of vLLM can succeed before somebody mends something, or none has succeeded."""
