"""Python's collector leaves alone what lives as long as the process: the tests and the libraries that they import.

Each full collection went through it, half a second long, and loading or freeing a model asks for one.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    gc.disable()  # hardly anything is freed while tests are collected
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
