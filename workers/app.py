"""The Celery application of a node: which settings, and why each."""

from __future__ import annotations

import logging
import signal
import warnings
from typing import Any

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.worker.request import Request
from kombu import Queue

from farm import brokers
from farm import settings as farm_settings
from farm.settings import Settings

# For so long a node waits for a message before it asks again. The shorter, the sooner it sees that nobody answers.
_ASK_S = 3


def __getattr__(name: str) -> Celery:
    """``app`` for the ``celery`` command of an administrator: ``celery -A workers.app inspect ping``."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return make(farm_settings.load())


def make(settings: Settings, *, queue: str | None = None) -> Celery:
    """The application of the node that consumes ``queue``, and only that; without one, of somebody who asks nodes.

    Raises:
        Usage: FARM_BROKER_URL is wrong.
    """
    app = Celery("qeff-farm", backend=None, set_as_current=False)
    connection = brokers.parse(settings).celery_settings()
    if queue:
        # The name is kombu's: what it blocks for, where it has an event loop as in a node. Without, it would sleep.
        connection["broker_transport_options"]["polling_interval"] = _ASK_S
    app.conf.update(
        connection,
        # A message is two ids, and the database says what they mean.
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        task_ignore_result=True,
        task_default_queue=queue or "nobody",
        # Messages are not acknowledged: one that is lost with a node or a broker is sent again by the scheduler, and a
        # second copy finds nothing to claim. With acknowledgements a node can fall silent: one that fails while the
        # broker is away never gives its prefetch credit back (kombu 5.7, QoS.ack of the Redis transport). Nor is a
        # limit of prefetching needed, for the scheduler sends no more than a node has room for.
        task_queues=[Queue(queue, routing_key=queue, no_ack=True)] if queue else [],
        # A blip of the broker must not end an attempt: its lease is in the database.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # For `celery inspect`; what a node answers is in workers.inspection.
        worker_enable_remote_control=True,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app


class UnacknowledgedRequest(Request):  # type: ignore[misc]
    """A message of a queue that wants no acknowledgement: Celery's own request would send one all the same."""

    def acknowledge(self) -> None:
        """Count it as acknowledged without a word to the broker."""
        self.acknowledged = True


def start_worker(app: Celery, *, queue: str, name: str) -> int:
    """Consume until a signal ends it; the exit code. Tasks only hand over what they are told, so no pool is needed."""
    warnings.simplefilter("ignore", SecurityWarning)  # said to every root user, though messages are JSON
    # Said at every reconnection, of a setting that is set on purpose, see make().
    logging.getLogger("py.warnings").setLevel(logging.ERROR)

    class Worker(app.Worker):  # type: ignore[misc]
        def install_platform_tweaks(self, worker: Any) -> None:
            """Let a hang-up end the node, as a request to end does: Celery would have it start itself again, also while
            it is being ended, since the kernel hangs up on a stopped process whose parent dies."""
            super().install_platform_tweaks(worker)
            signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))

    worker = Worker(
        pool="solo",
        queues=[queue],
        hostname=name,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)
