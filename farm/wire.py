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


# A message that nobody acknowledged appears again after this time, the shortest of all programs on a broker. Longer
# than any stage; what is lost meanwhile the scheduler sends again.
VISIBILITY_TIMEOUT_S = 24 * 3600

# What every program tells its connection to the broker.
BROKER_TRANSPORT = {
    "visibility_timeout": VISIBILITY_TIMEOUT_S,
    "socket_keepalive": True,
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "health_check_interval": 10,
    "retry_on_timeout": True,
}
