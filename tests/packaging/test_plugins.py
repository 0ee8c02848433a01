"""What tests share: the processes that run them, and what is kept from one to the next."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import structlog
from hypothesis import settings
from plugins.logs import pytest_runtest_protocol
from plugins.order import LONG, STARTED_ONCE, LongestFirst, group

from rlt_service import logs

ROOT = Path(__file__).parents[2]


class Node(SimpleNamespace):
    """A worker that notes what it is given."""

    __hash__ = object.__hash__
    gateway = SimpleNamespace(id="gw")
    shutting_down = False

    def send_runtest_some(self, indices: list[int]) -> None:
        self.given += indices

    def shutdown(self) -> None:
        self.shutting_down = True


@pytest.mark.parametrize("name", LONG)
def test_what_is_said_to_take_long_is_there(name: str) -> None:
    assert (ROOT / ("tests/" + name if name in STARTED_ONCE else name)).exists()


def test_a_folder_that_starts_something_is_one_group_and_other_files_are_their_own() -> None:
    assert group("tests/contract/test_engine.py::test_a[vllm]") == "contract"
    assert group("tests/jobs/test_api.py::Test::test_a") == "tests/jobs/test_api.py"
    assert group("tests/reward_server/compat/test_roll.py::test_a") == "tests/reward_server/compat/test_roll.py"


def test_the_longest_group_is_begun_first_whatever_its_place_and_its_number_of_tests(
    pytestconfig: pytest.Config,
) -> None:
    many = [f"tests/jobs/test_api.py::test_{i}" for i in range(30)]
    few = ["tests/jobs/test_whole.py::test_a", "tests/jobs/test_whole.py::test_b"]
    one, other = Node(given=[]), Node(given=[])
    scheduler: Any = LongestFirst(_config(pytestconfig), None)
    for node in (one, other):
        scheduler.add_node(node)
        scheduler.add_node_collection(node, [*many, *few])
    scheduler.schedule()
    assert one.given[:2] == [30, 31]
    assert other.given == list(range(30))


def _config(real: pytest.Config) -> Any:
    option = SimpleNamespace(tx=["popen", "popen"], dist="loadscope", loadscopereorder=True, debug=False)
    return SimpleNamespace(option=option, getvalue=lambda name: getattr(option, name), hook=real.hook)


def test_what_a_test_makes_of_logging_ends_with_it(request: pytest.FixtureRequest) -> None:
    root, library = logging.getLogger(), logging.getLogger("httpx")
    root.setLevel(logging.ERROR)
    library.setLevel(logging.CRITICAL)
    handlers = root.handlers[:]
    around = pytest_runtest_protocol(request.node)
    next(around)
    logs.configure("debug")
    assert (root.level, library.level, structlog.is_configured()) == (logging.DEBUG, logging.WARNING, True)
    assert root.handlers != handlers
    with pytest.raises(StopIteration):
        next(around)
    assert (root.level, library.level, structlog.is_configured()) == (logging.ERROR, logging.CRITICAL, False)
    assert root.handlers == handlers


def test_the_collector_leaves_alone_what_was_there_before_the_tests() -> None:
    assert gc.isenabled()
    assert gc.get_freeze_count() > 10_000


def test_certificates_are_read_once() -> None:
    assert httpx.create_ssl_context() is httpx.create_ssl_context()
    assert httpx.create_ssl_context(verify=False) is not httpx.create_ssl_context(verify=False)


def test_no_example_has_a_deadline() -> None:
    assert settings().deadline is None
