"""What an administrator may ask a node with ``celery inspect``: to look, not to steer.

Whoever may write to the broker could otherwise stop nodes, or change what they consume, past the database and without a
trace. Those who may are named in SQL and use the ``farm`` command.
"""

from __future__ import annotations

from typing import Any

from celery.worker.control import Panel

from farm import wire
from workers.steering import Steering

ALLOWED = frozenset({"ping", "stats", "active", "active_queues", "registered", "report", "clock", "hello"})


def answer(steering: Steering, *, name: str) -> None:
    """Let this process answer the allowed questions and refuse all else; ``active`` lists the attempts that it carries
    out. Celery's own answer would be empty, since its tasks only hand over what a message said.
    """

    def active(state: object, safe: bool = False) -> list[dict[str, Any]]:
        return [
            {
                "id": f"j{job_id}.{attempt}",
                "name": wire.TASK_NAME,
                "args": [job_id, attempt],
                "kwargs": {},
                "hostname": name,
                "time_start": since,
                "acknowledged": True,
            }
            for (job_id, attempt), since in steering.attempts().items()
        ]

    for command in Panel.data:
        if command not in ALLOWED:
            Panel.data[command] = _refuse
    Panel.data["active"] = active


def _refuse(state: object, **arguments: object) -> dict[str, str]:
    return {"error": "Nodes only answer questions. Steer them with the farm command: cancel, pause, drain, down."}
