"""What happens when much is asked at once: refusals, departures, repeats, people, several replicas."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from http.client import HTTPConnection
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import pytest

from rlt_client.prompts import TextCodec
from rlt_client.schemas.common import Scope
from rlt_reward_server.app import build
from rlt_reward_server.engine.scorer import CausalScorer
from rlt_reward_server.errors import Reason, item_error
from rlt_reward_server.passes import Pass
from rlt_reward_server.settings import Settings
from rlt_service.keys import Key, create_token, hash_token
from rlt_service.testing import running

SettingsOf = Callable[..., Settings]
T = TypeVar("T")

# plain HTTP: reading the certificates would take most of the time
get = partial(httpx.get, verify=False, timeout=60)
post = partial(httpx.post, verify=False, timeout=60)


def body(number: int = 0, **options: Any) -> dict[str, Any]:
    """One sample; each number is another."""
    item = {"question": f"What is {number} times 3?", "answer": "It is 6.", "explanation": "\n\nis carry so of"}
    return {"items": [item], "spec": "ss_only", **options}


class Gate:
    """Holds every forward pass back until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.passes: list[Pass] = []
        self.threads: set[str] = set()
        self.errors: list[Reason] = []
        real = CausalScorer.log_probs

        def log_probs(scorer: CausalScorer, passes: Sequence[Pass]) -> Any:
            self.threads.add(threading.current_thread().name)
            self.entered.set()
            assert self.open.wait(60)
            self.passes += passes
            return [item_error(self.errors.pop())] * len(passes) if self.errors else real(scorer, passes)

        monkeypatch.setattr(CausalScorer, "log_probs", log_probs)

    def hold(self) -> None:
        self.open.clear()
        self.entered.clear()


class Server:
    """A running server whose engine can be held."""

    def __init__(self, url: str, gate: Gate, pool: ThreadPoolExecutor) -> None:
        self.url = url
        self.gate = gate
        self._pool = pool

    def reward(self, request: dict[str, Any], **options: Any) -> httpx.Response:
        return post(f"{self.url}/reward", json=request, **options)

    def ask(self, request: dict[str, Any]) -> Future[httpx.Response]:
        """In the background."""
        return self._pool.submit(self.reward, request)

    def occupy(self) -> Future[httpx.Response]:
        """The engine, with a request of its own."""
        self.gate.hold()
        call = self.ask(body(999))
        assert self.gate.entered.wait(60)
        return call

    def queue(self, *requests: dict[str, Any]) -> list[Future[httpx.Response]]:
        """Behind each other, while the engine is occupied."""
        return [self._queued(partial(self.ask, request)) for request in requests]

    def queue_leaving(self, request: dict[str, Any]) -> HTTPConnection:
        """Behind the others, of a caller who leaves when this is closed."""

        def send() -> HTTPConnection:
            connection = HTTPConnection(urlsplit(self.url).netloc)
            connection.request("POST", "/reward", json.dumps(request), {"content-type": "application/json"})
            return connection

        return self._queued(send)

    def _queued(self, send: Callable[[], T]) -> T:
        waiting = self.metric("reward_queue_passes")
        sent = send()
        until(lambda: self.metric("reward_queue_passes") > waiting)
        return sent

    def metric(self, name: str) -> float:
        lines = get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"rlt_{name}"))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def start(settings: SettingsOf, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """A server, by default one that runs one pass a batch."""
    gate = Gate(monkeypatch)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(8))

        def make(**given: Any) -> Server:
            options = {"max_batch_tokens": 1, "max_items": 2, **given}
            url = stack.enter_context(running(lambda: build(settings(**options))))
            stack.callback(gate.open.set)  # before the server is asked to end
            gate.passes.clear()
            gate.threads.clear()
            return Server(url, gate, pool)

        yield make


def rewards(*calls: Future[httpx.Response]) -> list[float]:
    return [call.result().json()["items"][0]["reward"] for call in calls]


def test_a_full_server_refuses_with_retry_after(start: Callable[..., Server]) -> None:
    server = start(max_queue=4)
    calls = [server.occupy(), *server.queue(body(1), body(2), body(3))]
    refused = server.reward(body(4))
    server.gate.open.set()
    assert (refused.status_code, refused.json()["type"]) == (429, "overloaded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert [call.result().status_code for call in calls] == [200] * 4
    assert server.metric('reward_refused_total{reason="overloaded"}') == 1
    assert server.reward(body(4)).status_code == 200


def test_a_refused_request_is_not_even_read(start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(max_queue=4)
    calls = [server.occupy(), *server.queue(body(1), body(2), body(3))]
    monkeypatch.setattr(TextCodec, "encode", lambda *_: pytest.fail("it was tokenised"))
    assert server.reward(body(4)).status_code == 429
    monkeypatch.undo()
    server.gate.open.set()
    assert [call.result().status_code for call in calls] == [200] * 4


def test_tokens_fill_the_server_too(start: Callable[..., Server]) -> None:
    length = start().reward(body()).json()["usage"]["student_tokens"]
    server = start(max_queue_tokens=2 * length)
    calls = [server.occupy(), *server.queue(body(1))]
    refused = server.reward(body(2))
    server.gate.open.set()
    assert (refused.status_code, refused.json()["type"]) == (429, "overloaded")
    assert [call.result().status_code for call in calls] == [200] * 2


def test_what_can_never_fit_is_413(start: Callable[..., Server]) -> None:
    server = start(max_queue_tokens=10)
    refused = server.reward(body())
    assert (refused.status_code, refused.json()["type"]) == (413, "too_many_tokens")
    assert "retry-after" not in refused.headers
    three = server.reward({"items": body()["items"] * 3})
    assert (three.status_code, three.json()["type"]) == (413, "too_many_items")
    assert server.metric("reward_refused_total") == 2


def test_work_for_a_caller_who_hung_up_is_not_done(start: Callable[..., Server]) -> None:
    server = start()
    staying = server.occupy()
    server.queue_leaving(body(1)).close()
    until(lambda: server.metric("reward_queue_passes") == 0)
    server.gate.open.set()
    assert staying.result().status_code == 200
    assert server.reward(body(2)).status_code == 200
    assert len(server.gate.passes) == 2
    assert server.metric("reward_dropped_passes_total") == 1
    assert server.metric("reward_queue_tokens") == 0


def test_a_repeat_is_answered_from_memory_whatever_its_place_and_name(start: Callable[..., Server]) -> None:
    server = start()
    first = server.reward(body(1)).json()
    [item], [other] = body(1)["items"], body(2)["items"]
    again = server.reward(body(items=[other, {**item, "id": "mine"}])).json()
    assert len(server.gate.passes) == 2
    assert again["items"][1] == first["items"][0] | {"id": "mine", "index": 1}
    assert again["usage"]["student_tokens"] == 2 * first["usage"]["student_tokens"]
    assert server.metric('reward_cache_hits_total{cache="scores",how="kept"}') == 1
    alone = server.reward(body(1)).json()
    assert alone["usage"] == first["usage"]
    assert (alone["timing"]["queue_ms"], alone["timing"]["engine_ms"]) == (0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"preset": "ss_only", "ss_min_coef": 0.5}},
        {"spec": {"preset": "ss_only", "student_temperature": 1.0}},
        {"format": "plain"},
        {"detail": "tokens"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_shapes_a_score_is_part_of_its_name(start: Callable[..., Server], change: dict[str, Any]) -> None:
    server = start()
    for _ in range(2):
        assert server.reward(body(1)).json()["items"][0]["status"] == "scored"
        assert server.reward(body(1, **change)).json()["items"][0]["status"] == "scored"
    assert len(server.gate.passes) == 2


@pytest.mark.parametrize(("spec", "passes"), [("ss_only", 1), ("rlpr", 2)])
def test_one_owner_does_not_learn_what_another_asked(start: Callable[..., Server], spec: str, passes: int) -> None:
    tokens = [create_token() for _ in range(2)]
    keys = [Key(hash_token(token), f"owner-{n}", frozenset({Scope.reward})) for n, token in enumerate(tokens)]
    server = start(keys=";".join(key.line() for key in keys))
    for token in tokens * 2:
        reply = server.reward(body(spec=spec), headers={"authorization": f"Bearer {token}"})
        assert reply.json()["items"][0]["status"] == "scored"
    assert len(server.gate.passes) == 2 * passes


def test_a_repeat_of_what_is_under_way_joins_it(start: Callable[..., Server]) -> None:
    server = start()
    calls = [server.occupy(), *server.queue(body(1))]
    calls += [server.ask(body(1)), server.ask(body(1))]
    until(lambda: server.metric('reward_cache_hits_total{cache="scores",how="joined"}') == 2)
    server.gate.open.set()
    assert len(set(rewards(*calls[1:]))) == 1
    assert len(server.gate.passes) == 2


def left_to_another(server: Server) -> list[Future[httpx.Response]]:
    """Two wait for the same work behind a batch under way, and the first of them leaves. Gives the calls that stay."""
    staying = [server.occupy()]
    leaving = server.queue_leaving(body(1))
    staying.append(server.ask(body(1)))
    until(lambda: server.metric("reward_cache_hits_total") == 1)
    leaving.close()
    until(lambda: server.metric('http_requests_total{method="POST",route="/reward",status="499"}') == 1)
    return staying


def test_what_two_wait_for_is_done_though_the_first_has_left(start: Callable[..., Server]) -> None:
    server = start()
    staying = left_to_another(server)
    server.gate.open.set()
    assert None not in rewards(*staying)
    assert server.metric("reward_dropped_passes_total") == 0


def test_what_is_left_to_another_still_takes_its_place(start: Callable[..., Server]) -> None:
    server = start(max_queue=4)
    staying = left_to_another(server)
    staying += server.queue(body(2), body(3))
    refused = server.reward(body(4))
    server.gate.open.set()
    assert refused.status_code == 429
    assert None not in rewards(*staying)


@pytest.mark.parametrize("reason", [Reason.out_of_memory, Reason.scorer_failed])
def test_a_failure_that_may_pass_is_not_remembered(start: Callable[..., Server], reason: Reason) -> None:
    server = start()
    server.gate.errors = [reason]
    first, second = (server.reward(body()).json()["items"][0] for _ in range(2))
    assert (first["reward"], first["error"]["type"]) == (None, reason)
    assert second["status"] == "scored"
    assert server.metric(f'reward_items_total{{error="{reason}"') == 1


def test_nothing_is_remembered_where_that_is_switched_off(start: Callable[..., Server]) -> None:
    server = start(cache_s=0)
    assert len({server.reward(body()).json()["items"][0]["reward"] for _ in range(2)}) == 1
    assert len(server.gate.passes) == 2


def test_a_person_does_not_wait_behind_a_trainer(start: Callable[..., Server]) -> None:
    server = start(interactive_head_start_s=60)
    calls = [server.occupy(), *server.queue(body(1), body(2), body(3, priority="interactive"))]
    server.gate.open.set()
    assert None not in rewards(*calls)
    questions = [asked.ids for asked in server.gate.passes]
    alone = start()
    assert alone.reward(body(3)).status_code == 200
    assert questions[1] == alone.gate.passes[0].ids


def test_candidates_sent_one_by_one_travel_together(start: Callable[..., Server]) -> None:
    """Two questions with three candidates each, in turn; a batch has room for three passes that share nothing."""
    length = start().reward(body()).json()["usage"]["student_tokens"]
    server = start(max_batch_tokens=3 * length, batch_window_ms=0)
    requests = []
    for candidate in range(3):
        for question in (1, 2):
            request = body(question)
            request["items"][0]["explanation"] = "\n\nis carry" + " so" * candidate
            requests.append(request)
    calls = [server.occupy(), *server.queue(*requests)]
    server.gate.open.set()
    assert None not in rewards(*calls)
    prompts = [tuple(asked.ids[: length // 3]) for asked in server.gate.passes[1:]]
    assert [len(set(prompts[:3])), len(set(prompts[3:]))] == [1, 1]


def test_what_all_candidates_are_compared_with_is_computed_once(start: Callable[..., Server]) -> None:
    """Sixteen explanations of one question, and the answer without any, in requests of their own and in one."""
    server = start(max_items=8, max_batch_tokens=4096)
    candidates = [body(1)["items"][0] | {"explanation": "\n\nis carry" + " so" * n} for n in range(16)]
    calls = [server.occupy()]
    calls += [server.ask({"items": [candidate], "spec": "rlpr"}) for candidate in candidates[:6]]
    until(lambda: server.metric("reward_queue_passes") == 7)
    server.gate.open.set()
    assert None not in rewards(*calls)
    for half in (candidates[:8], candidates[8:]):
        reply = server.reward({"items": half, "spec": "rlpr"}).json()
        assert [score["status"] for score in reply["items"]] == ["scored"] * 8
        assert len({score["components"]["baseline"] for score in reply["items"]}) == 1
    assert len(server.gate.passes) == 1 + 16 + 1
    assert server.metric('reward_cache_hits_total{cache="baselines"') == 15


def test_every_replica_works(start: Callable[..., Server]) -> None:
    server = start(device="cpu,cpu")
    calls = [server.occupy(), *[server.ask(body(n)) for n in range(3)]]
    until(lambda: server.gate.threads == {"scorer-0", "scorer-1"} and server.metric("reward_queue_passes") == 2)
    server.gate.open.set()
    assert None not in rewards(*calls)


def test_a_replica_that_breaks_is_replaced_by_the_other(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlt_reward_server.scheduler.health.FIRST_REST_S", 60.0)  # it rests when it is asked
    server = start(device="cpu,cpu", cache_s=0)
    expected = rewards(server.ask(body()))
    server.gate.errors = [Reason.scorer_failed]
    assert rewards(server.ask(body())) == expected
    assert server.metric("reward_resting_replicas") == 1
    assert get(f"{server.url}/readyz").status_code == 200


def test_figures_of_a_batch(start: Callable[..., Server]) -> None:
    server = start()
    before = {name: server.metric(name) for name in ("reward_tokens_total", "reward_batch_tokens_sum")}
    tokens = server.reward(body()).json()["usage"]["student_tokens"]
    for name, value in before.items():
        assert 0 < server.metric(name) - value <= tokens  # nothing is run after the last token that is scored
    assert server.metric('reward_kl_source_total{source="none"}') == 1
