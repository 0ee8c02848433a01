"""Python's collector leaves alone what lives as long as the process: the tests and the libraries that they import.

Each full collection went through it, half a second long, and loading or freeing a model asks for one.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

MANY = 50_000  # objects, which take a collection about 25 ms


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    gc.disable()  # hardly anything is freed while tests are collected
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """What is still there when the tests of a file have ended is there for good: imported since, or a session's."""
    yield
    if nextitem and nextitem.path != item.path and len(gc.get_objects(generation=2)) > MANY:
        gc.collect()
        gc.freeze()
