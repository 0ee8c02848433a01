"""Fixtures that several parts share live in tests/plugins."""

import pytest

pytest_plugins = ["plugins.stack", "plugins.engine"]

STARTED_ONCE = {"contract", "integration", "reward_server"}  # folders whose tests share vLLM, a stack, scored models


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests stay in one process of pytest-xdist: those of a file, or of a folder that starts something once."""
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group(folder if folder in STARTED_ONCE else item.path.name))
