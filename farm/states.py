"""The states of a job and the only ways between them. Pure.

A job follows another while a live job with the same action key does the same work: it stays ``waiting`` with
``leader_id`` set, and ends when its leader ends. A leader that its user cancels meanwhile keeps its state until its
work has ended, see :mod:`farm.lifecycle.following`; then it is ``cancelled``, even if the work succeeded.
"""

from __future__ import annotations

import enum


class JobState(enum.StrEnum):
    """Where a job stands. Each comment: who moves it on; what a crash does to it."""

    WAITING = "waiting"  # inputs not done, or following a leader. Scheduler (`admit`). Nothing: no process has it
    READY = "ready"  # may be placed. Scheduler (`enqueue`). Nothing
    QUEUED = "queued"  # placed on a node, message sent or in the outbox. Node (`claim`). Message is sent again
    RUNNING = "running"  # a node holds the lease. Node. The lease ends and the reaper takes it (`lose`)
    SUCCEEDED = "succeeded"  # final: its artifact is published
    CACHED = "cached"  # final: its artifact existed, or its leader published it
    FAILED = "failed"  # final, until a user retries
    CANCELLED = "cancelled"  # final, until a user retries
    BLOCKED = "blocked"  # final, until an input's retry: an input failed or was cancelled


FINAL = frozenset({JobState.SUCCEEDED, JobState.CACHED, JobState.FAILED, JobState.CANCELLED, JobState.BLOCKED})
DONE = frozenset({JobState.SUCCEEDED, JobState.CACHED})
LIVE = frozenset({JobState.READY, JobState.QUEUED, JobState.RUNNING})  # at most one per action key

W, R, Q, X = JobState.WAITING, JobState.READY, JobState.QUEUED, JobState.RUNNING
S, C, F, N, B = JobState.SUCCEEDED, JobState.CACHED, JobState.FAILED, JobState.CANCELLED, JobState.BLOCKED

# (from, transition, to): everything that may happen to a job. `farm.lifecycle.jobs` has one function per name.
TRANSITIONS: frozenset[tuple[JobState, str, JobState]] = frozenset(
    {
        (W, "follow", W),  # a live job does the same work
        (W, "unfollow", W),  # that job ended without a result
        (W, "rebuild", W),  # its inputs are done, but one was deleted since, and is made again
        (R, "unsubscribe", R),  # cancelled by its user while others wait for its result: it works on for them
        (Q, "unsubscribe", Q),  # likewise
        (X, "unsubscribe", X),  # likewise
        (R, "subscribe", R),  # its user wants it after all
        (Q, "subscribe", Q),  # likewise
        (X, "subscribe", X),  # likewise
        (W, "admit", R),  # its inputs are done, and nobody does the same work
        (W, "hit", C),  # the action is done already, or the leader succeeded
        (W, "fail", F),  # the action is known to fail, or the leader failed for good
        (W, "block", B),  # an input cannot be done
        (W, "cancel", N),  # a user wants it
        (W, "expire", F),  # the deadline of the whole has passed
        (R, "enqueue", Q),  # there is room for it
        (R, "cancel", N),
        (R, "expire", F),  # that deadline, or the limit of waiting for a place
        (Q, "claim", X),  # its node has the message, and takes what it needs
        (Q, "give_back", R),  # no capacity at claim, node gone, or placed elsewhere
        (Q, "cancel", N),
        (Q, "expire", F),
        (X, "succeed", S),  # its artifact is published
        (X, "fail", F),  # for good: its class is not tried again, or was too often
        (X, "rebuild", W),  # an input is damaged, and made again
        (X, "retry_later", R),  # it failed in a way that may pass, and waits a while
        (X, "interrupt", R),  # the node is shutting down: not the job's fault
        (X, "lose", R),  # its lease ended, or its node did
        (X, "lose", F),  # lost too often
        (X, "overrun", R),  # its node did not end it when its running limit was over
        (X, "overrun", F),  # that, too often
        (X, "cancel", N),  # its node has stopped it, or was lost before it could
        (F, "retry", W),  # a user wants it tried again
        (N, "retry", W),
        (B, "retry", W),
    }
)

# What may be said of a job without a change of its state: events whose states are the same.
NOTES = frozenset({"release_cores"})


def is_legal(source: JobState, name: str, target: JobState) -> bool:
    """Whether the transition is in the table."""
    return (source, name, target) in TRANSITIONS
