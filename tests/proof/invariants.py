"""What must be true of a farm's tables at any time, whatever has happened. Judged on a snapshot, without SQL."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from farm import models
from farm.db import Database
from farm.lifecycle import leases
from farm.states import DONE, FINAL, LIVE, NOTES, TRANSITIONS, JobState
from farm.store.artifacts import Store
from tests.proof import snapshot
from tests.proof.snapshot import Snapshot

# How an attempt stands after the transition of its job that ended it. A new transition from `running` belongs here.
ENDS_AS: Mapping[str, frozenset[str]] = {
    "succeed": frozenset({"succeeded"}),
    "fail": frozenset({"failed"}),
    "retry_later": frozenset({"failed"}),
    "rebuild": frozenset({"failed"}),
    "interrupt": frozenset({"interrupted"}),
    "lose": frozenset({"lost"}),
    "overrun": frozenset({"lost"}),
    # Lost after a user had asked it to stop; the others worked on for followers when their user had cancelled them.
    "cancel": frozenset({"cancelled", "lost", "succeeded", "failed"}),
}
_UNDONE = frozenset({JobState.FAILED, JobState.CANCELLED, JobState.BLOCKED})
_FUTURE = frozenset({"forecast_at", "deadline_at", "expires_at", "run_until"})  # times that may be later than now


NOTHING: Mapping[str, int] = MappingProxyType({})


def check(
    database: Database, *, store: Store | None = None, now: float | None = None, struck: Mapping[str, int] = NOTHING
) -> None:
    """Assert that the tables of a farm agree with each other, see :func:`check_rows`."""
    check_rows(snapshot.take(database), store=store, now=now, struck=struck)


def check_rows(
    rows: Snapshot, *, store: Store | None = None, now: float | None = None, struck: Mapping[str, int] = NOTHING
) -> None:
    """Assert that the rows of a farm agree with each other.

    Args:
        rows: all of them.
        store: where the artifacts' bytes must be; None when there are none.
        now: the database's time; None when that is nobody's but its own.
        struck: how often an artifact was taken from the books, by digest.
    """
    jobs = {row.id: row for row in rows[models.jobs]}
    for law in LAWS:
        law(rows, jobs)
    work_is_done_once(rows, jobs, struck=struck)
    if store is not None:
        artifacts_have_their_bytes(rows, store=store)
    if now is not None:
        times_are_the_databases(rows, now=now)


def one_attempt_runs_for_each_running_job(rows: Snapshot, jobs: Mapping[int, Any]) -> None:
    """And none for any other."""
    running = sorted((row.job_id, row.number) for row in rows[models.attempts] if row.state == "running")
    assert running == [(row.id, row.attempt) for row in jobs.values() if row.state == "running"]


def cores_belong_to_who_runs(rows: Snapshot, jobs: Mapping[int, Any]) -> None:
    """A running attempt has the cores that it was granted, a lost one may have them draining, nobody else has any."""
    tries = {(row.job_id, row.number): row for row in rows[models.attempts]}
    usable: dict[int, set[int]] = collections.defaultdict(set)
    for core in rows[models.cores]:
        usable[core.device_id].add(core.number)
    held: dict[tuple[int, int], dict[int, set[int]]] = collections.defaultdict(lambda: collections.defaultdict(set))
    holders: dict[int, set[tuple[int, int]]] = collections.defaultdict(set)
    for lease in rows[models.core_leases]:
        key = (lease.job_id, lease.attempt)
        assert lease.core in usable[lease.device_id], lease
        assert lease.core not in held[key][lease.device_id], lease
        held[key][lease.device_id].add(lease.core)
        holders[lease.device_id].add(key)
        assert tries[key].state == {"held": "running", "draining": "lost"}[lease.state], (lease, tries[key])
    for key, row in tries.items():
        job = jobs[key[0]]
        granted = {grant["device_id"]: set(grant["cores"]) for grant in row.placed_on}
        if row.state == "running" and job.num_cores:
            assert key in held, row
            assert len(granted) == max(1, job.num_devices), row
        assert held.get(key, granted) == granted, row  # all its devices or none, also while what was lost drains
        for device_id, cores in held.get(key, {}).items():
            assert cores == usable[device_id] if job.exclusive else len(cores) == job.num_cores, (row, job)
            assert not job.exclusive or holders[device_id] == {key}, (row, holders[device_id])


def slots_belong_to_who_runs(rows: Snapshot, jobs: Mapping[int, Any]) -> None:
    """A running attempt without cores has one slot of its host."""
    tries = {(row.job_id, row.number): row for row in rows[models.attempts]}
    hosts = {row.id: row for row in rows[models.hosts]}
    for lease in rows[models.host_leases]:
        assert 0 <= lease.slot < hosts[lease.host_id].num_slots, lease
        assert lease.ram_bytes == tries[lease.job_id, lease.attempt].ram_bytes, lease
    held = sorted((row.job_id, row.attempt) for row in rows[models.host_leases])
    assert held == [key for key, row in tries.items() if row.state == "running" and not jobs[key[0]].num_cores]


def memory_is_never_given_twice(rows: Snapshot, jobs: Mapping[int, Any]) -> None:
    """What runs on a host, in its slots or on its devices, and what may still run there has no more than there is."""
    devices = {row.id: row.host_id for row in rows[models.devices]}
    holders = {(row.host_id, row.job_id, row.attempt) for row in rows[models.host_leases]}
    holders |= {(devices[row.device_id], row.job_id, row.attempt) for row in rows[models.core_leases]}
    tries = {(row.job_id, row.number): row for row in rows[models.attempts]}
    reserved: collections.Counter[int] = collections.Counter()
    for host_id, job_id, attempt in holders:
        reserved[host_id] += tries[job_id, attempt].ram_bytes
    for host in rows[models.hosts]:
        assert reserved[host.id] <= leases.ram_budget(host.ram_bytes), host


def _works_for_others(job: Any) -> bool:
    return job.unsubscribed_at is not None and job.state not in FINAL


def inputs_are_counted(rows: Snapshot, jobs: Mapping[int, Any]) -> None:
    """``remaining`` is the number of inputs that are not done, and who waits has no input that cannot be done."""
    inputs: dict[int, list[JobState]] = collections.defaultdict(list)
    for edge in rows[models.edges]:
        parent = jobs[edge.parent_id]
        inputs[edge.child_id].append(JobState.CANCELLED if _works_for_others(parent) else JobState(parent.state))
    for row in jobs.values():
        assert row.remaining == sum(state not in DONE for state in inputs[row.id]), row
        assert row.state not in LIVE | DONE or row.remaining == 0, row
        assert row.state != "waiting" or not _UNDONE & set(inputs[row.id]), row
        assert row.state != "blocked" or _UNDONE & set(inputs[row.id]), row


def followers_follow_the_living(rows: Snapshot, jobs: Mapping[int, Any]) -> None:
    """A leader is live, has the same key, and is as urgent as whoever waits for it. Who works for others has some."""
    wanted = set()
    for row in jobs.values():
        if row.leader_id is not None:
            leader = jobs[row.leader_id]
            assert row.state == "waiting", row
            assert leader.state in LIVE, (row, leader)
            assert leader.action_key == row.action_key, (row, leader)
            assert leader.priority >= row.priority, (row, leader)
            assert models.KINDS.index(leader.kind) <= models.KINDS.index(row.kind), (row, leader)
            if leader.skip_cache or not row.skip_cache:
                wanted.add(leader.id)
        assert not row.cancel_requested or row.state in ("running", "cancelled"), row
    for row in filter(_works_for_others, jobs.values()):
        assert row.state in LIVE, row
        assert row.id in wanted or row.cancel_requested, row


def the_paused_are_held(rows: Snapshot, jobs: Mapping[int, Any]) -> None:
    """A job that has not ended is held if its submission is paused and nobody who is not held waits for it."""
    paused = {row.id for row in rows[models.submissions] if row.paused_at is not None}
    wanted = {row.leader_id for row in jobs.values() if row.leader_id is not None and not row.held}
    for row in jobs.values():
        if row.state not in FINAL:
            held = row.id not in wanted and (row.unsubscribed_at is not None or row.submission_id in paused)
            assert bool(row.held) == held, row


def work_is_done_once(rows: Snapshot, jobs: Mapping[int, Any], *, struck: Mapping[str, int]) -> None:
    """One action succeeds once, unless somebody wanted it anew or its artifact is gone; it is known what it gave."""
    known = {row.action_key: row for row in rows[models.actions]}
    done = [row for row in jobs.values() if row.state in DONE]
    fresh = collections.Counter(row.action_key for row in done if row.state == "succeeded" and not row.skip_cache)
    rebuilt = sum(event.transition == "rebuild" for event in rows[models.events])
    gone = collections.Counter[str]()
    for key, digest in {(row.action_key, row.artifact) for row in done}:
        gone[key] += struck.get(digest, 0)
    assert all(number <= 1 + rebuilt + gone[key] for key, number in fresh.items()), (fresh, gone)
    succeeded = {row.job_id for row in rows[models.attempts] if row.state == "succeeded"}
    artifacts = {row.digest: row for row in rows[models.artifacts]}
    for row in done:
        assert row.artifact in artifacts, row
        assert row.done_by in succeeded, row
        # Another action may have given the same since it was struck.
        assert row.action_key in known or artifacts[row.artifact].deleted_at is not None or row.artifact in struck, row
    live = collections.Counter(row.action_key for row in jobs.values() if row.state in LIVE)
    assert all(number == 1 for number in live.values()), live


def nothing_leads_to_the_deleted(rows: Snapshot, jobs: Mapping[int, Any]) -> None:
    """No action gives an artifact that was deleted, and no job that may be placed or runs has one for an input."""
    deleted = {row.digest for row in rows[models.artifacts] if row.deleted_at is not None}
    for row in rows[models.actions]:
        assert row.artifact not in deleted, row
    for edge in rows[models.edges]:
        if jobs[edge.child_id].state in LIVE:
            assert jobs[edge.parent_id].artifact not in deleted, jobs[edge.child_id]
    for row in rows[models.artifacts]:
        assert row.pinned is None or row.deleted_at is row.condemned_at is None, row


def every_change_has_its_event(rows: Snapshot, jobs: Mapping[int, Any]) -> None:
    """The events of a job are a legal way from its submission to where it stands, and as old as its times say."""
    state: dict[int, str] = {}
    last: dict[int, Any] = {}
    for event in rows[models.events]:
        if event.transition in NOTES:
            assert event.from_state == event.to_state == state[event.job_id], event
            continue
        if event.job_id in last:
            assert state[event.job_id] == event.from_state, event
            assert (JobState(event.from_state), event.transition, JobState(event.to_state)) in TRANSITIONS, event
            assert event.attempt >= last[event.job_id].attempt, event
        else:
            assert (event.transition, event.to_state) == ("submit", "waiting"), event
        state[event.job_id] = event.to_state
        last[event.job_id] = event
    assert state == {row.id: row.state for row in jobs.values()}
    for row in jobs.values():
        assert last[row.id].attempt == row.attempt, row
        assert row.finished_at == (last[row.id].at if JobState(row.state) in FINAL else None), row


def attempts_are_what_events_tell(rows: Snapshot, jobs: Mapping[int, Any]) -> None:
    """Each attempt was claimed once and ended once, as it says; the last explains the job's end if it ran then."""
    by_job = {job_id: list(found) for job_id, found in itertools.groupby(rows[models.attempts], lambda row: row.job_id)}
    claimed: dict[int, list[int]] = collections.defaultdict(list)
    ended: dict[tuple[int, int], Any] = {}
    last: dict[int, Any] = {}
    for event in rows[models.events]:
        if event.transition in NOTES:
            continue
        if event.transition == "claim":
            claimed[event.job_id].append(event.attempt)
        elif event.from_state == "running" and event.to_state != "running":
            assert (event.job_id, event.attempt) not in ended, event
            ended[event.job_id, event.attempt] = event
        last[event.job_id] = event
    assert {job_id: [row.number for row in found] for job_id, found in by_job.items()} == claimed
    for row in rows[models.attempts]:
        if row.state == "running":
            assert (row.job_id, row.number) not in ended, row
        else:
            event = ended[row.job_id, row.number]
            assert row.state in ENDS_AS[event.transition], (row, event)
            assert row.finished_at == event.at, (row, event)
    assert len(ended) == sum(row.state != "running" for row in rows[models.attempts])
    for row in jobs.values():
        if row.state in FINAL:
            _check_explanation(row, last=last[row.id], tries=by_job.get(row.id, []))


def _check_explanation(row: Any, *, last: Any, tries: list[Any]) -> None:
    """A job that ended while it ran ended as its last attempt did; any other has no attempt to thank for it."""
    ran = last.from_state == "running"
    final = [one for one in tries if one.number == row.attempt]
    assert ran or row.state != "succeeded", row
    assert not ran or row.state in ("succeeded", "failed", "cancelled"), row
    assert not ran or len(final) == 1, (row, tries)
    counting = [one for one in tries if one.state == "succeeded" and one.replaced_at is None]
    # One that its user had cancelled may have succeeded for its followers, and been tried again since.
    assert len(counting) <= 1, (row, tries)
    assert row.state != "succeeded" or [one.number for one in counting] == [row.attempt], (row, tries)
    if row.state == "failed":
        assert row.failure_class, row
        assert not ran or final[0].failure_class == row.failure_class, (row, final)


def messages_are_of_known_jobs(rows: Snapshot, jobs: Mapping[int, Any]) -> None:
    """A message in the outbox tells of an attempt that was placed; a late one may be of the past."""
    for message in rows[models.outbox]:
        assert 1 <= message.attempt <= jobs[message.job_id].attempt, message


def artifacts_have_their_bytes(rows: Snapshot, *, store: Store) -> None:
    """The files of each artifact that was not deleted are there, as they were published."""
    for row in rows[models.artifacts]:
        if row.deleted_at is not None:
            continue
        tree: Path = store.path(row.digest)
        files = [path for path in tree.rglob("*") if path.is_file()]
        assert (len(files), sum(path.stat().st_size for path in files)) == (row.num_files, row.num_bytes)


def times_are_the_databases(rows: Snapshot, *, now: float) -> None:
    """Nothing happened in the future or before what it follows: no host's own clock has come into a row."""
    latest: dict[int, float] = {}
    for event in rows[models.events]:
        assert event.at >= latest.get(event.job_id, 0.0), event
        latest[event.job_id] = event.at
    for table in snapshot.TABLES:
        columns = [column.name for column in table.c if column.name.endswith("_at") and column.name not in _FUTURE]
        for row in rows[table]:
            for column in columns:
                value = getattr(row, column)
                assert value is None or value <= now, (table.name, column, row)


LAWS: tuple[Callable[[Snapshot, Mapping[int, Any]], None], ...] = (
    one_attempt_runs_for_each_running_job,
    cores_belong_to_who_runs,
    slots_belong_to_who_runs,
    memory_is_never_given_twice,
    inputs_are_counted,
    followers_follow_the_living,
    the_paused_are_held,
    nothing_leads_to_the_deleted,
    every_change_has_its_event,
    attempts_are_what_events_tell,
    messages_are_of_known_jobs,
)
