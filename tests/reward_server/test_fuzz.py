"""Whatever is sent, the reward server answers with something that its document names, and goes on working."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from plugins.hostile import Hostile
from plugins.patience import PATIENCE_S
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from rlt_client.schemas.reward import RewardItem
from rlt_reward_server.app import build
from rlt_reward_server.compat.config import CompatConfig
from rlt_reward_server.settings import Settings
from rlt_service.testing import running


@pytest.fixture(scope="module")
def fuzzed(
    settings: Callable[..., Settings], golden_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Every route in use: a hosted teacher, and every trainer's protocol configured."""
    compat = tmp_path_factory.mktemp("compat") / "compat.toml"
    compat.write_text("".join(f'[{name}]\nkl = "hosted"\n' for name in CompatConfig.model_fields))
    given = {"teacher": str(golden_dir / "teacher"), "compat": compat}
    with running(lambda: build(settings(**given))) as url:
        yield url


schema = schemathesis.openapi.from_path(Path(__file__).parents[2] / "docs" / "openapi" / "reward.json")


@schema.parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_nothing_that_the_document_allows_or_forbids_is_a_server_error(fuzzed: str, case: schemathesis.Case) -> None:
    checks = [not_a_server_error, response_schema_conformance]
    case.call_and_validate(base_url=fuzzed, checks=checks, timeout=PATIENCE_S)  # its own is ten seconds


@pytest.fixture
def crowd(fuzzed: str, hostile: Callable[[str, str], Hostile]) -> Hostile:
    return hostile(fuzzed, "/reward")


def scores(url: str, item: RewardItem) -> float:
    reply = httpx.post(f"{url}/reward", json={"items": [item.model_dump(exclude_none=True)]}, timeout=60)
    reward = reply.json()["items"][0]["reward"]
    assert isinstance(reward, float)
    return reward


@pytest.fixture
def item(golden_items: list[RewardItem]) -> RewardItem:
    return golden_items[0]


def test_clients_that_hang_in_mid_body_keep_nobody_waiting(fuzzed: str, crowd: Hostile, item: RewardItem) -> None:
    before = scores(fuzzed, item)
    crowd.hang_in_mid_body()
    assert scores(fuzzed, item) == pytest.approx(before, abs=1e-5)


def test_clients_that_leave_in_mid_body_leave_nothing_behind(fuzzed: str, crowd: Hostile, item: RewardItem) -> None:
    before = scores(fuzzed, item)
    crowd.leave_in_mid_body()
    assert scores(fuzzed, item) == pytest.approx(before, abs=1e-5)
    lines = httpx.get(f"{fuzzed}/metrics").text.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("rlt_reward_queue_passes ")] == ["0.0"]


@pytest.mark.parametrize("length", [5, 100_000])
def test_a_length_that_is_a_lie_is_refused_or_waited_for(
    fuzzed: str, crowd: Hostile, item: RewardItem, length: int
) -> None:
    body = json.dumps({"items": [item.model_dump(exclude_none=True)]}).encode()
    reply = crowd.lie(body, length)
    assert reply is None if length > len(body) else reply.startswith(b"HTTP/1.1 4")
    assert scores(fuzzed, item) < 0


def test_clients_that_never_read_the_reply_keep_nobody_waiting(fuzzed: str, crowd: Hostile, item: RewardItem) -> None:
    items = [item.model_dump(exclude_none=True)] * 64
    crowd.never_read(json.dumps({"items": items, "detail": "tokens"}).encode())
    assert scores(fuzzed, item) < 0


def test_garbage_instead_of_http(fuzzed: str, crowd: Hostile, item: RewardItem) -> None:
    crowd.send_garbage()
    assert scores(fuzzed, item) < 0


@pytest.mark.slow
def test_thousands_of_calls_at_once_a_connection_each(fuzzed: str, item: RewardItem) -> None:
    wanted, found = scores(fuzzed, item), []
    body = {"items": [item.model_dump(exclude_none=True)]}

    def call() -> None:
        for _ in range(25):
            reply = httpx.post(f"{fuzzed}/reward", json=body, timeout=60, verify=False)  # no certificates are read
            found.append(reply.json()["items"][0]["reward"])

    threads = [threading.Thread(target=call) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == pytest.approx([wanted] * 1000, abs=1e-5)
