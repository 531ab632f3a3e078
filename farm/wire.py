"""Names that the farm and its workers agree on. A message is two ids and carries no authority."""

from __future__ import annotations

TASK_NAME = "qeff_farm.attempt"  # arguments: job_id (int), attempt (int)


def host_queue(host: str) -> str:
    """Queue of the node that runs the stages without a device on a host."""
    return f"host.{host}"


def device_queue(host: str, qid: int) -> str:
    """Queue of the node that is pinned to a device."""
    return f"device.{host}.{qid}"


def attempt_log(job_id: int, attempt: int) -> str:
    """Path of an attempt's log relative to the log directory; known before the attempt ends."""
    return f"jobs/{job_id // 1000:03d}/{job_id}.{attempt}.log"
