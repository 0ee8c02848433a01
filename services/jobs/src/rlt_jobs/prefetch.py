"""What of kombu's Redis transport keeps a worker from listening again after its broker was away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kombu.transport import redis, virtual

__all__ = ["QoS", "install"]


class QoS(redis.QoS):
    """As kombu's, but a message that could not be acknowledged no longer counts as one that is worked on.

    In kombu 5.7 it counts for good. Once such messages fill the prefetch window the worker stops listening, and so
    never learns that its connection is gone. The broker gives them out again after the visibility timeout, if it still
    has them.
    """

    def ack(self, delivery_tag: str) -> None:
        with self._counted_no_more(delivery_tag):
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]  # untyped in kombu

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        with self._counted_no_more(delivery_tag):
            super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]

    @contextmanager
    def _counted_no_more(self, delivery_tag: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]
            raise


def install() -> None:
    """For every Redis connection that this process makes from now on."""
    redis.Channel.QoS = QoS
