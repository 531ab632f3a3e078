"""The one Celery task: an attempt that somebody should look at."""

from __future__ import annotations

import logging

from celery import Celery

from farm import wire
from workers.app import UnacknowledgedRequest
from workers.supervisor import run_attempt
from workers.workplace import Workplace

_logger = logging.getLogger(__name__)


def register(app: Celery, *, workplace: Workplace) -> None:
    """Let ``app`` carry out attempts in ``workplace``."""

    @app.task(name=wire.TASK_NAME, ignore_result=True, Request=UnacknowledgedRequest)  # type: ignore[untyped-decorator]
    def attempt(job_id: int, attempt: int) -> None:
        if workplace.stopping.is_set():
            return  # still queued: the next node gives it back
        try:
            with workplace.busy:
                run_attempt(workplace, job_id, attempt)
        except Exception:
            # The outermost step of a thread: the lease runs out and the scheduler decides what becomes of the job.
            _logger.exception("job %d: attempt %d went wrong on the node's side", job_id, attempt)
