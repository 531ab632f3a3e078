"""The one Celery task: an attempt that somebody should look at."""

from __future__ import annotations

from celery import Celery

from farm import wire
from workers.app import UnacknowledgedRequest
from workers.intake import Intake


def register(app: Celery, *, intake: Intake) -> None:
    """Let ``app`` hand attempts over to ``intake``."""

    @app.task(name=wire.TASK_NAME, ignore_result=True, Request=UnacknowledgedRequest)  # type: ignore[untyped-decorator]
    def attempt(job_id: int, attempt: int) -> None:
        intake.offer(job_id, attempt)
