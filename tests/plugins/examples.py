"""Hypothesis sets no deadline for an example: a busy machine is slow, not wrong."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("rlt", deadline=None)
settings.load_profile("rlt")
