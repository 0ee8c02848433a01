"""Celery: the doorbell. Postgres is the truth, so losing or doubling a message must not matter, and does not.

No results, no retries, no ETA, no chords, no revoke, no remote control. A message is one id.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import entity

from rlt_jobs.outbox import Message, Queue
from rlt_jobs.settings import Settings

__all__ = ["CANARY", "depth", "make_celery", "send"]

CANARY = "rlt_jobs.canary"
BROKER_SECONDS = 5.0  # a broker that is down must not hold up the transaction that a message is sent from
HIGHEST = 9  # priority; Redis serves the lowest number first


def make_celery(settings: Settings) -> Celery:
    """An app without tasks: enough to send. `rlt_jobs.worker` adds them."""
    make_queue: Any = entity.Queue  # kombu ships half of its types
    app = Celery("rlt_jobs", broker=settings.redis_url, set_as_current=False)
    visibility = {"visibility_timeout": settings.visibility_seconds}
    app.conf.update(
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_publish_retry=False,  # the relay tries again, in a new transaction
        task_time_limit=settings.task_limit_seconds,
        task_soft_time_limit=settings.soft_limit_seconds,
        task_queues=[make_queue(queue.value) for queue in Queue],
        task_default_queue=Queue.shards.value,
        task_send_sent_event=False,
        worker_prefetch_multiplier=1,
        worker_concurrency=settings.concurrency,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_soft_shutdown_timeout=30.0,  # Ctrl-C and SIGQUIT: time to give leases back before tasks are cancelled
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a worker waits for its broker as long as it takes
        broker_transport_options={
            **visibility,
            "priority_steps": list(range(HIGHEST + 1)),
            "queue_order_strategy": "priority",
            "socket_connect_timeout": BROKER_SECONDS,
            "socket_keepalive": True,
            "max_retries": 0,  # of a connection to send over: the relay itself tries again
        },
        result_backend_transport_options=visibility,
        **visibility,
    )
    return app


def send(app: Celery, message: Message) -> None:
    """Queue one message. Raises `kombu.exceptions.OperationalError` where the broker is not there."""
    app.send_task(
        message.task,
        args=[message.ref],
        queue=message.queue.value,
        priority=HIGHEST - message.priority,
        ignore_result=True,
        retry=False,
    )


def depth(app: Celery, queue: Queue) -> int:
    """Messages that wait in a queue, of all priorities."""
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        return int(channel.queue_declare(queue.value, passive=False).message_count)
