"""A worker's listening end after its broker was away."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions
from kombu import Connection, Consumer, Queue
from kombu.transport import redis as transport

from rlt_jobs import prefetch
from rlt_local.databases import Program, prepare_valkey, start
from rlt_local.ports import free

WINDOW = 2


@pytest.fixture
def broker(tmp_path: Path) -> Program:
    return prepare_valkey(tmp_path / "valkey", *free(), durable=False)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport.Channel, "QoS", transport.Channel.QoS)  # so that it is put back afterwards
    prefetch.install()


def received(connection: Connection) -> list[Any]:
    """As many messages as may be worked on at once."""
    found: list[Any] = []
    queue = Queue("shards")
    producer = connection.Producer()
    for ref in range(WINDOW + 1):
        producer.publish({"ref": ref}, routing_key="shards", declare=[queue])
    consumer = Consumer(connection, [queue], callbacks=[lambda _, message: found.append(message)])
    consumer.qos(prefetch_count=WINDOW)
    consumer.consume()
    while len(found) < WINDOW:
        connection.drain_events(timeout=60)
    assert not found[0].channel.qos.can_consume()
    return found


@pytest.mark.parametrize("end", [lambda message: message.ack(), lambda message: message.reject(requeue=True)])
def test_what_cannot_be_acknowledged_leaves_the_window(
    ours: None, broker: Program, tmp_path: Path, end: Callable[[Any], None]
) -> None:
    with start(broker, tmp_path / "log", die_with_caller=True) as server:
        server.wait_ready()
        connection = Connection(broker.url)
        messages = received(connection)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        for message in messages:
            with pytest.raises(redis.exceptions.ConnectionError):
                end(message)
        assert messages[0].channel.qos.can_consume()  # its next look at the broker tells it of the lost connection
        with pytest.raises(redis.exceptions.ConnectionError):
            connection.drain_events(timeout=60)


def test_one_that_was_acknowledged_is_gone(ours: None, broker: Program, tmp_path: Path) -> None:
    with start(broker, tmp_path / "log", die_with_caller=True) as server:
        server.wait_ready()
        with Connection(broker.url) as connection:
            messages = received(connection)
            messages[0].ack()
            assert messages[0].channel.qos.can_consume()
            with messages[0].channel.conn_or_acquire() as client:
                assert client.hlen("unacked") == WINDOW - 1
