"""Fixtures that several parts share live in tests/plugins."""

from __future__ import annotations

from typing import Any

import pytest

pytest_plugins = [
    "plugins.stack",
    "plugins.bucket",
    "plugins.certificates",
    "plugins.engine",
    "plugins.examples",
    "plugins.hub",
    "plugins.policies",
    "plugins.heap",
    "plugins.hostile",
    "plugins.logs",
    "plugins.patience",
    "plugins.training",
    "plugins.traces",
]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from plugins.order import LongestFirst

    return LongestFirst(config, log)
