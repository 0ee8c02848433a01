"""What a test makes of the process's logging ends with it: servers configure it, and tests run them in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    root = logging.getLogger()
    handlers, levels, configured = root.handlers[:], _levels(), structlog.is_configured()
    try:
        return (yield)
    finally:
        root.handlers[:] = handlers
        for name, level in _levels().items():
            if level != levels.get(name, level):  # setting one empties every logger's cache
                logging.getLogger(name).setLevel(levels[name])
        if structlog.is_configured() and not configured:
            structlog.reset_defaults()


def _levels() -> dict[str, int]:
    """By name: root's is `root`."""
    known = (logging.root, *logging.root.manager.loggerDict.values())
    return {each.name: each.level for each in known if isinstance(each, logging.Logger)}
