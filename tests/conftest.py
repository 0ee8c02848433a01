"""Fixtures that several parts share live in tests/plugins."""

pytest_plugins = ["plugins.stack", "plugins.engine"]
