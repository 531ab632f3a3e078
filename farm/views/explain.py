"""Why a job is where it is: one sentence and what it waits for. Reads only."""

from __future__ import annotations

import dataclasses

import sqlalchemy as sa

from farm import durations
from farm.models import jobs
from farm.needs import in_words, meets
from farm.states import DONE, FINAL, JobState
from farm.views import inventory, misses, outlook, queries
from farm.views.outlook import Outlook


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a job is in its state.

    Attributes:
        reason: one sentence.
        details: further sentences.
        waits_for: jobs that have to end first.
        outlook: what is expected of it; None when it has ended.
        miss: why nothing that was known could be reused; None when something was, or when that is not decided yet.
    """

    job: queries.Job
    reason: str
    details: tuple[str, ...] = ()
    waits_for: tuple[int, ...] = ()
    outlook: Outlook | None = None
    miss: misses.Miss | None = None


def explain(connection: sa.Connection, job_id: int, *, now: float, heard_since: float) -> Explanation:
    """Why a job is in its state, and why its work is done at all, see :func:`_state`."""
    found = _state(connection, job_id, now=now, heard_since=heard_since)
    miss = misses.explain(connection, job_id)
    return found if miss is None else dataclasses.replace(found, details=(*found.details, miss.reason), miss=miss)


def _state(connection: sa.Connection, job_id: int, *, now: float, heard_since: float) -> Explanation:
    """Why a job is in its state.

    Args:
        connection: a read transaction.
        job_id: which job.
        now: the database's clock.
        heard_since: nodes whose last heartbeat is older count as dead.

    Raises:
        NotFound: there is no such job.
    """
    job = queries.job(connection, job_id)
    if job.state == JobState.WAITING:
        found = _waiting(connection, job)
        found = dataclasses.replace(found, details=(*found.details, *_paused(connection, job, now=now)))
    elif job.state == JobState.READY and not job.held:
        found = _ready(connection, job, now=now, heard_since=heard_since)
    elif job.state == JobState.READY:
        found = Explanation(job=job, reason=_paused(connection, job, now=now)[0])
    elif job.state in (JobState.QUEUED, JobState.RUNNING):
        found = _placed(connection, job, now=now)
    else:
        return _ended(connection, job)
    expected = outlook.of(connection, job, now=now)
    said = expected.sentences(now=now) if expected is not None else []
    details = (*found.details, *said, *_clocks(job, now=now))
    return dataclasses.replace(found, details=details, outlook=expected)


def _clocks(job: queries.Job, *, now: float) -> list[str]:
    """What ends a job that goes on for too long."""
    said = []
    if job.state == JobState.READY and job.wait_limit_s is not None and not job.held:
        said.append(f"It fails when it has waited {durations.words(job.wait_limit_s)} for a place.")
    if job.deadline_at is not None:
        left_s = job.deadline_at - now
        said.append(f"Its deadline is in {durations.words(left_s)}." if left_s > 0 else "Its deadline has passed.")
    return said


def _paused(connection: sa.Connection, job: queries.Job, *, now: float) -> tuple[str, ...]:
    """Who holds a job, as one sentence, or nothing."""
    if not job.held:
        return ()
    found = queries.submission(connection, job.submission_id)
    if found.paused_at is None:
        return ("It works on for others alone, and the submissions of all of them are paused.",)
    since_s = now - found.paused_at
    return (f"s{found.id} has been paused by {found.paused_by} for {since_s:.0f} s; `farm resume s{found.id}`.",)


def _waiting(connection: sa.Connection, job: queries.Job) -> Explanation:
    if job.leader_id is not None:
        leader = queries.job(connection, job.leader_id)
        reason = (
            f"It follows j{leader.id} of s{leader.submission_id}, which does the same work and is {_how(leader)}. "
            + ("It is done anew after that." if job.skip_cache and not leader.skip_cache else "It ends with that job.")
        )
        return Explanation(job=job, reason=reason, waits_for=(leader.id,))
    parents = {parent.id: parent for parent in queries.inputs(connection, job.id).values()}
    open_parents = [parent for parent in parents.values() if parent.state not in DONE]
    if open_parents:
        details = tuple(f"j{parent.id} {parent.label}: {parent.state}." for parent in open_parents)
        return Explanation(
            job=job,
            reason=f"It waits for {len(open_parents)} of its inputs.",
            details=details,
            waits_for=tuple(parent.id for parent in open_parents),
        )
    return Explanation(job=job, reason="Its inputs are done; the scheduler has not looked at it yet.")


def _how(leader: queries.Job) -> str:
    return "cancelled, but works on for those who follow it" if leader.works_for_others else str(leader.state)


def _ready(connection: sa.Connection, job: queries.Job, *, now: float, heard_since: float) -> Explanation:
    if job.not_before > now:
        return Explanation(job=job, reason=f"It is tried again in {job.not_before - now:.0f} s. {job.reason}".rstrip())
    details = [job.reason] if job.reason else []  # placement's own words
    if not job.num_cores:
        return _wants_slot(connection, job, heard_since=heard_since, details=details)
    found = [device for device in inventory.device_list(connection, heard_since=heard_since) if _suits(device, job)]
    wide = [device for device in found if device.num_cores >= job.num_cores]
    waits_for: list[int] = []
    for device in wide:
        words = [f"{device.name}: {device.free} of {device.num_cores} cores free"]
        if not device.alive:
            words.append("no node serves it")
        if device.drained is not None:
            what = "its host is drained" if device.drained.host else "drained"
            words.append(f"{what} by {device.drained.by}{': ' if device.drained.reason else ''}{device.drained.reason}")
        if device.health != "ready":
            words.append(f"{device.health}: {device.health_reason}" if device.health_reason else device.health)
        for holder in device.holders:
            draining = " (draining)" if holder.draining else ""
            words.append(f"j{holder.job_id} holds {holder.num_cores}{draining}")
            waits_for.append(holder.job_id)
        details.append(", ".join(words) + ".")
    narrow = len(found) - len(wide)
    if narrow:
        details.append(f"{narrow} devices have fewer than {job.num_cores} cores.")
    of_devices = "one device" if job.num_devices < 2 else f"each of {job.num_devices} devices of one host"
    needed = in_words(job.needs, exclusive=job.exclusive)
    reason = (
        f"It wants {job.num_cores} cores of {of_devices}{f' ({needed})' if needed else ''}; "
        f"{len(wide)} {'device has' if len(wide) == 1 else 'devices have'} as many."
    )
    return Explanation(job=job, reason=reason, details=tuple(details), waits_for=tuple(dict.fromkeys(waits_for)))


def _suits(device: inventory.DeviceView, job: queries.Job) -> bool:
    """Whether a device is what a job needs, whatever is free of it."""
    return meets(job.needs, sku=device.sku, labels=device.labels, host=device.host, sdk=device.sdk)


def _wants_slot(connection: sa.Connection, job: queries.Job, *, heard_since: float, details: list[str]) -> Explanation:
    for host in inventory.host_list(connection, heard_since=heard_since):
        word = "" if host.alive else ", no node serves it"
        if host.drained is not None:
            word += f", drained by {host.drained.by}{': ' if host.drained.reason else ''}{host.drained.reason}"
        details.append(f"{host.name}: {host.num_slots - host.busy_slots} of {host.num_slots} slots free{word}.")
    return Explanation(job=job, reason="It wants a slot of a host.", details=tuple(details))


def _placed(connection: sa.Connection, job: queries.Job, *, now: float) -> Explanation:
    if job.state == JobState.QUEUED:
        since = now - (job.queued_at or now)
        return Explanation(job=job, reason=f"It was sent to its node {since:.0f} s ago. {job.reason}".rstrip())
    attempt = queries.attempt_list(connection, job.id)[-1]
    where = f"{attempt.host} {attempt.device}" if attempt.device else attempt.host
    details = [attempt.progress] if attempt.progress else []
    if job.cancel_requested:
        details.append("Its end was asked for; its node ends it within seconds.")
    if attempt.run_until is not None:
        details.append(f"It is ended in {durations.words(max(0.0, attempt.run_until - now))} at the latest.")
    reason = f"Attempt {attempt.number} has run on {where} for {now - attempt.started_at:.0f} s."
    return Explanation(job=job, reason=reason, details=tuple(details))


def _ended(connection: sa.Connection, job: queries.Job) -> Explanation:
    if job.state == JobState.CACHED:
        by = f" by j{job.done_by}" if job.done_by is not None else ""
        return Explanation(job=job, reason=f"The same work had been done{by}; its result was reused.")
    if job.state == JobState.FAILED:
        told = job.failure_message
        details = [job.reason] if job.reason and job.reason != told else []
        attempts = queries.attempt_list(connection, job.id)
        if attempts:
            details.append(f"It was tried {len(attempts)} times. `farm logs j{job.id}` shows what it said.")
        details += [f"The line of the log: {job.failure_line}"] if job.failure_line not in (None, told) else []
        details += [f"What to do: {job.failure_advice}"] if job.failure_advice else []
        reason = f"{job.failure_class}: {job.failure_message}"
        return Explanation(job=job, reason=reason, details=tuple(details))
    if job.state == JobState.BLOCKED:
        parents = {parent.id: parent for parent in queries.inputs(connection, job.id).values()}
        broken = [parent for parent in parents.values() if parent.state in FINAL - DONE]
        details = [f"j{parent.id} {parent.label}: {parent.state}." for parent in broken]
        details += [f"`farm retry j{broken[0].id}` tries it again."] if broken else []
        return Explanation(
            job=job,
            reason=f"An input failed. {job.reason}".rstrip(),
            details=tuple(details),
            waits_for=tuple(parent.id for parent in broken),
        )
    if job.works_for_others:
        followers = sa.select(jobs.c.id).where(jobs.c.leader_id == job.id).order_by(jobs.c.id)
        names = ", ".join(f"j{one}" for one in connection.scalars(followers))
        return Explanation(job=job, reason=f"Cancelled by a user; its work goes on for {names}.")
    return Explanation(job=job, reason=job.reason or f"It has {job.state}.")
