"""Fixtures that several parts share live in tests/plugins."""

from __future__ import annotations

from typing import Any

import pytest

pytest_plugins = [
    "plugins.stack",
    "plugins.bucket",
    "plugins.engine",
    "plugins.policies",
    "plugins.hostile",
    "plugins.training",
]

STARTED_ONCE = {"contract", "integration", "reward_server"}  # folders whose tests share vLLM, a stack, scored models


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Which tests stay in one process: those of a file, or of a folder that starts something once.

    Not `--dist loadgroup`: pytest-xdist 3.8 marks groups in node ids, which pytest 9.2 does not let it change.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            folder = file.split("/")[-2]
            return folder if folder in STARTED_ONCE else file

    return Scheduling(config, log)
