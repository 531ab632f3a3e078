"""One attempt on a node, from its claim to the last trace of its process. No Celery and no torch in it.

:meth:`Attempt.run` reads as the life of an attempt. The stage runs in a process group of its own; this side renews the
lease, listens, stops the group when it must, and writes how it ended, once, with the fence.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import os
import selectors
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from farm import wire
from farm.errors import StaleTransition, StorageFault
from farm.lifecycle import attempts, health, reaping, rebuilding
from farm.records import Claim, Success, Usage
from farm.store.artifacts import remove_tree
from qeff_engine.errors import FailureClass
from workers import bridge, outcome, stage_process
from workers.forks import Child
from workers.lease import Lease, Verdict
from workers.meter import Gauge, Use, use_of
from workers.outcome import Ending, Outcome
from workers.stage_log import StageLog
from workers.stage_process import Order
from workers.steering import Asked
from workers.workplace import Workplace

_logger = logging.getLogger(__name__)
_SETTLE_RETRY_S = 0.5
_SETTLE_WHEN_STOPPING_S = 5.0
_CUT_OFF = "Its node could not renew the lease in time, and ended it."
# A device that hangs or computes wrong may be why, and a test tells.
_SUSPICIOUS = (FailureClass.NUMERICS, FailureClass.TIMEOUT)
_START_POLL_S = 0.1  # only while the fork server still imports


def carry_out(workplace: Workplace, claim: Claim, since: float) -> None:
    """Carry out a claim that was made after the monotonic time ``since``; returns when it is settled and nothing of it
    runs."""
    with (
        workplace.leases.keep(claim, since=since) as lease,
        workplace.steering.attempt(claim.job_id, claim.attempt) as asked,
    ):
        Attempt(workplace, claim=claim, lease=lease, asked=asked).run()


class Attempt:
    """A claimed attempt."""

    def __init__(self, workplace: Workplace, *, claim: Claim, lease: Lease, asked: Asked) -> None:
        self._place = workplace
        self._claim = claim
        self._lease = lease
        self._asked = asked
        path = wire.attempt_log(claim.job_id, claim.attempt)
        self._log = StageLog(workplace.settings.log_dir / path, limit_bytes=workplace.settings.log_limit_bytes)
        self._as_keyed = True
        self._unread = b""
        self._said: Mapping[str, Any] | None = None  # the stage process's last words
        self._oom_kills = _oom_kills()

    def run(self) -> None:
        """Prepare, start, watch, settle, clean up."""
        try:
            order = bridge.order(self._claim, workplace=self._place)
        except StorageFault as error:
            self._settle(outcome.failed(FailureClass.INFRASTRUCTURE, str(error)))
            return
        started = self._start(order)
        if isinstance(started, Outcome):
            result = started
        else:
            self._as_keyed = bridge.is_as_keyed(self._claim, started.code.toolchain)
            child = dataclasses.replace(started, group=dataclasses.replace(started.group, mark=order.record.group.mark))
            with self._place.meter.attempt(
                child.group, reserved_bytes=self._claim.ram_bytes, limit_bytes=self._memory_limit_bytes()
            ) as gauge:
                result = self._watch(child, gauge=gauge)
            self._log.close()
            result = outcome.with_log(result, self._log.end())
            if not self._is_alone and not child.group.kill():
                # The kernel does not let go of it: no core of it is free, so the lease runs out and they stay draining.
                _logger.error("job %d: its processes cannot be killed", self._claim.job_id)
                return
        self._clean(order)
        self._settle(result)

    def _start(self, order: Order) -> Child | Outcome:
        """The stage process; or how the attempt ended while the fork server was still importing."""
        future = self._place.forks.start(stage_process.main, order=order)
        while True:
            done, _ = concurrent.futures.wait([future], timeout=_START_POLL_S)
            if done:
                break
            ended = self._asked_to_end()
            if ended is not None and future.cancel():
                return ended
        self._lease.time.start()
        try:
            return future.result()
        except (OSError, EOFError) as error:
            return outcome.failed(FailureClass.INFRASTRUCTURE, f"The stage process could not be started: {error!r}.")

    def _memory_limit_bytes(self) -> int:
        """What the stage may hold: only of one that has been measured before is it known what is too much."""
        return int(self._claim.ram_bytes * self._place.settings.memory_factor) if self._claim.ram_known else 0

    def _watch(self, child: Child, *, gauge: Gauge) -> Outcome:
        """Listen until the process has ended, by itself or because it was stopped."""
        channel, log = child.channel, child.log
        with selectors.DefaultSelector() as selector:
            others = (self._place.stopping, self._asked, self._lease)
            for descriptor in (channel, log, child.sentinel, *(other.fileno() for other in others)):
                selector.register(descriptor, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select(self._next_look_s())}
                if channel in ready and not self._listen(channel):
                    selector.unregister(channel)
                if log in ready and not self._log.take(log):
                    selector.unregister(log)
                if child.sentinel in ready:
                    return self._ended(child, gauge=gauge)
                asked = self._asked_to_end()
                if asked is not None:
                    return self._stop(child, gauge=gauge, asked=asked)

    def _next_look_s(self) -> float:
        """Seconds until something is to be done though nothing happens."""
        return self._lease.time.shorter(max(0.0, self._lease.trusted_for_s))

    def _asked_to_end(self) -> Outcome | None:
        """How the attempt has to end when it may not go on."""
        verdict = self._lease.verdict
        if verdict is Verdict.LOST:
            return Outcome(ending=Ending.LOST, message="The lease is lost.")
        wish = self._asked.wish
        if wish is not None:
            return Outcome(ending=Ending.CANCELLED if wish.cancel else Ending.INTERRUPTED, message=wish.reason)
        if verdict is Verdict.CANCEL:
            return Outcome(ending=Ending.CANCELLED, message="A user cancelled it.")
        if verdict is Verdict.DEVICE_GONE:
            return outcome.failed(FailureClass.DEVICE_LOST, self._lease.fault)
        if self._place.stopping.is_set():
            return Outcome(ending=Ending.INTERRUPTED, message="The node is shutting down.")
        if self._lease.time.over:
            return outcome.failed(FailureClass.TIMEOUT, self._lease.time.words)
        return None

    def _stop(self, child: Child, *, gauge: Gauge, asked: Outcome) -> Outcome:
        """End all processes of the stage: politely first, unless the lease is lost."""
        if asked.ending is not Ending.LOST:
            child.group.end(grace_s=self._place.settings.cancel_grace_s)
        ended = self._ended(child, gauge=gauge)
        if asked.ending in (Ending.INTERRUPTED, Ending.FAILED) and ended.ending is Ending.SUCCEEDED:
            return ended  # it was done already
        return dataclasses.replace(
            asked, exit_code=ended.exit_code, cpu_s=ended.cpu_s, peak_rss_bytes=ended.peak_rss_bytes
        )

    def _ended(self, child: Child, *, gauge: Gauge) -> Outcome:
        """The outcome of a process that has ended, or is ended by this."""
        self._listen(child.channel)
        others = Use()
        if not self._is_alone:
            left = child.group.members()
            gauge.note(use_of(left))
            # Nobody has waited for these, so the kernel's account of the leader is without them.
            others = use_of([process for process in left if process.pid != child.group.pid])
            child.group.kill()
        self._log.take(child.log)
        ended = self._place.forks.collect(child)
        found = outcome.of_process(
            self._said, exit_code=ended.code, out_of_memory=_oom_kills() > self._oom_kills, excess=gauge.excess
        )
        return dataclasses.replace(
            found,
            cpu_s=round(max(gauge.cpu_s, ended.cpu_s + others.cpu_s), 3),
            peak_rss_bytes=max(gauge.peak_rss_bytes, ended.peak_rss_bytes),
        )

    @property
    def _is_alone(self) -> bool:
        """Whether the process said at its end that it leaves no other: only it knows that without a search."""
        return bool(self._said and self._said["alone"])

    def _listen(self, descriptor: int) -> bool:
        """Read what the process has said; False at the end of the pipe."""
        while True:
            try:
                chunk = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            *lines, self._unread = (self._unread + chunk).split(b"\n")
            for line in lines:
                fields = json.loads(line)
                if fields["kind"] == stage_process.OUTCOME:
                    self._said = fields
                else:
                    self._lease.progress, self._lease.fraction = fields.get("message"), fields.get("fraction")

    def _clean(self, order: Order) -> None:
        """Remove everything the attempt had but its log and its artifact."""
        try:
            self._place.store.discard(order.record.tree)
            remove_tree(order.record.scratch)
            order.record.remove(self._place.records)
        except (OSError, StorageFault):
            _logger.exception("job %d: cannot clean up", self._claim.job_id)  # the record stays for the next node

    def _settle(self, result: Outcome) -> None:
        """Write how it ended, as soon as the database answers; a lost attempt is given back."""
        deadline: float | None = None
        while True:
            try:
                self._write(result)
                return
            except StaleTransition:
                result = Outcome(ending=Ending.LOST)
            except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
                _logger.warning("job %d: cannot settle yet: %s", self._claim.job_id, error)
                if self._place.stopping.wait(_SETTLE_RETRY_S):
                    deadline = deadline or time.monotonic() + _SETTLE_WHEN_STOPPING_S
                    if time.monotonic() > deadline:
                        return
                    time.sleep(_SETTLE_RETRY_S)

    def _write(self, result: Outcome) -> None:
        usage = Usage(
            cpu_s=result.cpu_s,
            peak_rss_bytes=result.peak_rss_bytes,
            exit_code=result.exit_code,
            log_path=wire.attempt_log(self._claim.job_id, self._claim.attempt),
        )
        if result.ending is Ending.SUCCEEDED and result.artifact is not None:
            self._place.ledger.succeed(
                Success(
                    job_id=self._claim.job_id,
                    attempt=self._claim.attempt,
                    artifact=result.artifact,
                    figures=result.figures,
                    usage=usage,
                    as_keyed=self._as_keyed,
                )
            )
            return
        with self._place.database.write() as connection:
            self._write_other(connection, result, usage=usage)

    def _write_other(self, connection: sa.Connection, result: Outcome, *, usage: Usage) -> None:
        """Write an ending that is no success."""
        job_id, number = self._claim.job_id, self._claim.attempt
        if result.damaged:
            rebuilding.rebuild_input(
                connection, job_id, number, digest=result.damaged, message=result.message, usage=usage
            )
        elif result.ending is Ending.FAILED and result.failure_class is not None:
            attempts.fail(
                connection,
                job_id,
                number,
                failure_class=result.failure_class,
                message=result.message,
                usage=usage,
                line=result.line,
                advice=result.advice,
                as_keyed=self._as_keyed,
                believed_for_s=self._place.settings.failures_believed_s,
            )
            if result.failure_class is FailureClass.DEVICE_LOST and not self._lease.fault:  # else the check counted it
                health.count_fault(
                    connection,
                    self._lease.qids,
                    reason=result.message,
                    quarantine=health.Quarantine.of(self._place.settings),
                )
            elif result.failure_class in _SUSPICIOUS:
                health.suspect(connection, self._lease.qids, reason=result.message)
        elif result.ending is Ending.CANCELLED:
            attempts.cancel_attempt(connection, job_id, number, usage=usage)
        elif result.ending is Ending.INTERRUPTED:
            attempts.interrupt(connection, job_id, number, reason=result.message)
        else:
            # Nobody may have noticed yet that the node was cut off.
            with contextlib.suppress(StaleTransition):
                reaping.lose(connection, job_id, number, reason=_CUT_OFF, term=None)
            attempts.confirm_gone(connection, host_id=self._place.host_id, job_id=job_id, attempt=number)


def _oom_kills() -> int:
    """How many processes the kernel of this host has killed for want of memory since it started."""
    path = Path("/proc/vmstat")
    if not path.exists():
        return 0
    counts = dict(line.split() for line in path.read_text(encoding="ascii").splitlines())
    return int(counts.get("oom_kill", 0))
