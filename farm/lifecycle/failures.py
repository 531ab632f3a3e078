"""What a failure's class decides: how often and when a job is tried again, whether the failure is believed the next
time, and what a user can do. One table; pure.

The evidence that leads to a class is judged where it lies: in :mod:`workers.outcome` for a stage's process, in the
engine for what a stage itself finds out, in :mod:`farm.lifecycle.reaping` for what goes silent.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

from qeff_engine.errors import FailureClass

MOST_FAILURES = 8  # of one job, of whatever classes: one that fails in another way each time has to end, too
_MOST_CHARS = 500  # of a line of a log


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """What follows from a class.

    Attributes:
        advice: what a user can do, when the failure itself does not say.
        retries: how often a job is tried again after a failure of this class.
        first_pause_s: before the first retry.
        factor: by which each further pause is longer.
        longest_pause_s: no pause is longer.
        jitter: the largest part of a pause that is left out, so that what failed together does not come back together.
        deterministic: the same work would fail in the same way: jobs that wait for it fail with it, and it is
            remembered for those that come.
        more_memory: a retry reserves twice the memory.
    """

    advice: str
    retries: int = 0
    first_pause_s: float = 1.0
    factor: float = 2.0
    longest_pause_s: float = 60.0
    jitter: float = 0.25
    deterministic: bool = False
    more_memory: bool = False


POLICIES: Mapping[FailureClass, Policy] = {
    FailureClass.INVALID_INPUT: Policy(deterministic=True, advice="Correct the request or the model's files."),
    FailureClass.UNSUPPORTED: Policy(
        deterministic=True, advice="Choose another option or format, or a version that can do it."
    ),
    FailureClass.OUT_OF_MEMORY_HOST: Policy(
        retries=1, more_memory=True, advice="Use a host with more memory, or fewer slots on this one."
    ),
    FailureClass.OUT_OF_MEMORY_DEVICE: Policy(
        advice="Use mxfp6 weights or an mxint8 KV cache, a shorter context, a smaller batch or more devices."
    ),
    FailureClass.COMPILER_ERROR: Policy(
        deterministic=True, advice="The compiler refuses this graph with these options: change either, or the SDK."
    ),
    FailureClass.COMPILER_CRASH: Policy(
        retries=1, first_pause_s=2.0, advice="Report it to the compiler's vendor with the log; try other options."
    ),
    FailureClass.NUMERICS: Policy(advice="Try a wider format: fp16 in place of mxfp6, an fp16 KV cache."),
    FailureClass.TIMEOUT: Policy(
        retries=1, first_pause_s=2.0, advice="Give it more time, or find out in the log what it waited for."
    ),
    FailureClass.DEVICE_LOST: Policy(retries=3, advice="Look at the device: `farm devices`, `qaic-util -q`."),
    FailureClass.WORKER_LOST: Policy(
        retries=3, first_pause_s=0.5, advice="Look at the host's kernel log and the node's own log."
    ),
    FailureClass.INFRASTRUCTURE: Policy(
        retries=3, first_pause_s=2.0, factor=4.0, advice="See to disk, network, rights and the SDK: `farm doctor`."
    ),
    FailureClass.CANCELLED: Policy(advice="`farm retry` starts it again."),
    FailureClass.BUG: Policy(advice="Report it with the log: `farm logs`."),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an attempt failed.

    Attributes:
        failure_class: which kind.
        message: for people: what, which value, what was expected.
        line: the one line of the log that matters; empty for the first line of the message.
        advice: what to do; empty for what the class says.
    """

    failure_class: FailureClass
    message: str
    line: str = ""
    advice: str = ""

    @property
    def policy(self) -> Policy:
        """What follows from the class."""
        return POLICIES[self.failure_class]

    def columns(self) -> dict[str, str]:
        """The values of a row's columns about a failure."""
        line = self.line or self.message.partition("\n")[0]
        return {
            "failure_class": str(self.failure_class),
            "failure_message": self.message,
            "failure_line": line.strip()[:_MOST_CHARS],
            "failure_advice": self.advice or self.policy.advice,
        }


def is_tried_again(failure_class: FailureClass, *, same_class: int, failures: int) -> bool:
    """Whether a job is tried again.

    Args:
        failure_class: of the failure that has just come.
        same_class: how often the job has failed so before.
        failures: how often it has failed before, of whatever class.
    """
    return same_class < POLICIES[failure_class].retries and failures + 1 < MOST_FAILURES


def pause_s(failure_class: FailureClass, *, same_class: int, job_id: int, attempt: int) -> float:
    """Seconds until the next try: longer each time, and shortened by a part that depends on job and attempt only."""
    policy = POLICIES[failure_class]
    whole_s = min(policy.longest_pause_s, policy.first_pause_s * policy.factor**same_class)
    digest = hashlib.sha256(f"{job_id}.{attempt}".encode()).digest()
    return float(whole_s * (1.0 - policy.jitter * int.from_bytes(digest[:8], "big") / 2**64))


def memory_bytes(failure_class: FailureClass, *, predicted_bytes: int, reserved_bytes: int, peak_rss_bytes: int) -> int:
    """What the next try reserves of its host's memory.

    Args:
        failure_class: of the failure; most do not change the reservation.
        predicted_bytes: what the job was predicted to need; 0 when nobody knew.
        reserved_bytes: what this attempt had.
        peak_rss_bytes: what it was seen to use.
    """
    if not POLICIES[failure_class].more_memory:
        return predicted_bytes
    return 2 * max(predicted_bytes, reserved_bytes, peak_rss_bytes)
