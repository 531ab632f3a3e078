"""The Celery application of a node: which settings, and why each."""

from __future__ import annotations

import warnings
from typing import Any

from celery import Celery
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning

from farm import wire


def make(broker_url: str, *, queue: str) -> Celery:
    """The application of the node that consumes ``queue``, and only that."""
    app = Celery("qeff-farm", broker=broker_url, backend=None, set_as_current=False)
    app.conf.update(
        # A message is two ids, and the database says what they mean.
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        task_ignore_result=True,
        task_default_queue=queue,
        # A node takes what it can begin at once. A message is done when its attempt is settled.
        worker_prefetch_multiplier=1,
        task_acks_late=True,
        task_reject_on_worker_lost=False,
        # A second copy of a message finds nothing to claim; a first one is re-sent by the scheduler, not by the broker.
        broker_transport_options=wire.BROKER_TRANSPORT,
        visibility_timeout=wire.VISIBILITY_TIMEOUT_S,
        result_backend_transport_options={"visibility_timeout": wire.VISIBILITY_TIMEOUT_S},
        # A blip of the broker must not end an attempt: its lease is in the database.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # Nobody steers a node through the broker.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app


def start_worker(app: Celery, *, queue: str, concurrency: int, name: str) -> int:
    """Consume until a signal ends it; the exit code."""
    for category in (SecurityWarning, CPendingDeprecationWarning):
        # Said to every root user, though messages are JSON; and of a setting that is set on purpose, see make().
        warnings.simplefilter("ignore", category)
    worker: Any = app.Worker(
        pool="threads",
        concurrency=concurrency,
        queues=[queue],
        hostname=name,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)
