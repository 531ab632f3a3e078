"""What the scheduler does to jobs on their way to a node: admit, follow, hit, enqueue."""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from farm.db import now, recordset
from farm.errors import StaleTransition
from farm.lifecycle import following, leadership, outbox, remaking, results, settling
from farm.lifecycle.transitions import chunks, hold_graph, move, move_each
from farm.models import edges, jobs, literal, literals
from farm.needs import identifying
from farm.placement.estimates import Estimate
from farm.records import Admissible, Assignment, Waiting
from farm.states import LIVE, JobState

_URGENCY = (jobs.c.id, jobs.c.skip_cache, jobs.c.priority, jobs.c.kind, jobs.c.held)
_JOB = sa.select(*_URGENCY).where(jobs.c.id == sa.bindparam("job"))
_LEADER = sa.select(*_URGENCY).where(jobs.c.action_key == sa.bindparam("key"), jobs.c.state.in_(literals(LIVE)))
_ANEW = sa.select(jobs.c.id).where(jobs.c.id.in_(sa.bindparam("jobs", expanding=True)), jobs.c.skip_cache)
_LIVE_KEYS = sa.select(jobs.c.action_key).where(
    jobs.c.action_key.in_(sa.bindparam("keys", expanding=True)), jobs.c.state.in_(literals(LIVE))
)
_ADMISSIBLE = (
    sa.select(jobs.c.id, jobs.c.stage, jobs.c.spec, jobs.c.needs, jobs.c.exclusive)
    .where(jobs.c.state == literal(JobState.WAITING), jobs.c.remaining == literal(0), jobs.c.leader_id.is_(None))
    .order_by(jobs.c.id)
    .limit(sa.bindparam("limit"))
)
_parents = jobs.alias()
_INPUTS = (
    sa.select(edges.c.child_id, edges.c.input, _parents.c.artifact)
    .join(_parents, _parents.c.id == edges.c.parent_id)
    .where(edges.c.child_id.in_(sa.bindparam("children", expanding=True)))
)
_NEWS_S = 5.0  # a forecast that is off by less is left as it is
_SAME_S, _SAME = 0.5, 0.05  # and a prediction that is off by less than this, or by this part of it


def admissible(connection: sa.Connection, *, limit: int) -> list[Admissible]:
    """Waiting jobs whose inputs are done and that follow nobody, oldest first, with their inputs' digests."""
    rows = connection.execute(_ADMISSIBLE, {"limit": limit}).all()
    links = connection.execute(_INPUTS, {"children": [row.id for row in rows]}) if rows else ()
    inputs: dict[int, dict[str, str]] = collections.defaultdict(dict)
    for link in links:
        inputs[link.child_id][link.input] = link.artifact
    return [Admissible(id=row.id, stage=row.stage, fields=_fields(row), inputs=inputs[row.id]) for row in rows]


def _fields(row: Any) -> dict[str, Any]:
    return identifying(row.stage, row.spec, needs=row.needs, exclusive=row.exclusive)


def admit(
    connection: sa.Connection,
    job_id: int,
    *,
    action_key: str,
    parts: Mapping[str, Any],
    term: int | None,
    predicted: Estimate | None = None,
) -> JobState:
    """Decide about a waiting job by its action key; returns its state afterwards.

    ``cached`` when the action is done, ``failed`` when it is known to fail, ``waiting`` behind a live job with the same
    key, or for an input that was deleted and is made again, else ``ready``, with what it is predicted to take. What is
    known does not count for a job whose work is wanted anew.

    Raises:
        StaleTransition: the job, or the term, is not what the caller believes.
    """
    leadership.require_term(connection, term)
    hold_graph(connection)
    at = now(connection)
    keys = {"action_key": action_key, "key_parts": dict(parts)}
    job = connection.execute(_JOB, {"job": job_id}).one()
    known = None if job.skip_cache else results.known(connection, action_key, at=at)
    if known is not None and known.artifact is not None:
        values = {**keys, "done_by": known.job_id}
        hit(connection, job_id, artifact=known.artifact, reason=f"done before by j{known.job_id}", at=at, values=values)
        return JobState.CACHED
    if known is not None:
        values = {**keys, **{name: known._mapping[name] for name in results.FAILURE}}
        reason = f"the same work failed in j{known.job_id}"
        _step(connection, job_id, "fail", target=JobState.FAILED, reason=reason, at=at, values=values)
        settling.block_descendants(connection, job_id, because="failed", at=at)
        return JobState.FAILED
    leader = connection.execute(_LEADER, {"key": action_key}).one_or_none()
    if leader is not None:
        _follow(connection, job, leader=leader, at=at, values=keys)
        return JobState.WAITING
    if makers := remaking.lacking(connection, [job_id]).get(job_id):
        remaking.wait_for_inputs(connection, job_id, makers, at=at)
        return JobState.WAITING
    values = {**keys, "ready_at": at, **_predictions(predicted)}
    _step(connection, job_id, "admit", target=JobState.READY, reason="waits for a place", at=at, values=values)
    return JobState.READY


def admit_all(
    connection: sa.Connection,
    found: Sequence[tuple[int, str, Mapping[str, Any]]],
    *,
    term: int | None,
    predicted: Mapping[int, Estimate] = MappingProxyType({}),
) -> int:
    """Decide about waiting jobs (id, action key, its parts), each as :func:`admit` would; returns how many.

    Most are work that nobody knows: those become ready together. A job that a user was faster with is left alone.

    Raises:
        StaleTransition: the term is over.
    """
    leadership.require_term(connection, term)
    hold_graph(connection)
    at = now(connection)
    known = results.among(connection, [key for _, key, _ in found], at=at)
    taken: set[str] = set()
    anew: set[int] = set()
    for some in chunks(found):
        taken.update(connection.scalars(_LIVE_KEYS, {"keys": [key for _, key, _ in some]}))
        anew.update(connection.scalars(_ANEW, {"jobs": [job_id for job_id, _, _ in some]}))
    fresh: list[dict[str, Any]] = []
    others = []
    for job_id, key, parts in found:
        if key in taken or (key in known and job_id not in anew):
            others.append((job_id, key, parts))
        else:
            taken.add(key)
            values = {"action_key": key, "key_parts": dict(parts), "ready_at": at}
            values |= _predictions(predicted.get(job_id))
            fresh.append({"id": job_id, "reason": "waits for a place", **values})
    lacking = remaking.lacking(connection, [row["id"] for row in fresh])
    others += [(row["id"], row["action_key"], row["key_parts"]) for row in fresh if row["id"] in lacking]
    fresh = [row for row in fresh if row["id"] not in lacking]
    count = len(move_each(connection, fresh, "admit", source=JobState.WAITING, target=JobState.READY, at=at))
    for job_id, key, parts in others:
        with contextlib.suppress(StaleTransition):
            admit(connection, job_id, action_key=key, parts=parts, term=None, predicted=predicted.get(job_id))
            count += 1
    return count


def _predictions(predicted: Estimate | None) -> dict[str, Any]:
    """The columns of what a job is predicted to take."""
    if predicted is None:
        return {"expected_s": None, "reserved_s": None, "ram_bytes": 0}
    return {
        "expected_s": predicted.expected_s,
        "reserved_s": predicted.reserved_s,
        "ram_bytes": predicted.ram_bytes,
    }


def _follow(connection: sa.Connection, job: Any, *, leader: Any, at: float, values: Mapping[str, Any]) -> None:
    """Wait for a live job with the same key, which becomes as urgent as whoever waits for it."""
    if job.skip_cache and not leader.skip_cache:
        reason = f"j{leader.id} does the same work, and may have begun before this was submitted to do it anew"
    else:
        reason = f"the same work is being done by j{leader.id}"
    values = {**values, "leader_id": leader.id}
    _step(connection, job.id, "follow", target=JobState.WAITING, reason=reason, at=at, values=values)
    urgency = (leader.priority, leader.kind)
    if following.most_urgent([urgency, (job.priority, job.kind)]) != urgency or leader.held > job.held:
        following.weigh(connection, [leader.id])


def _step(
    connection: sa.Connection,
    job_id: int,
    name: str,
    *,
    target: JobState,
    reason: str,
    at: float,
    values: Mapping[str, Any],
) -> None:
    """A transition from ``waiting``."""
    move(connection, job_id, name, source=JobState.WAITING, target=target, reason=reason, at=at, values=values)


def hit(
    connection: sa.Connection, job_id: int, *, artifact: str, reason: str, at: float, values: Mapping[str, Any]
) -> None:
    """A waiting job's artifact exists already."""
    results.use(connection, [artifact], at=at)
    found = {**values, "artifact": artifact, "leader_id": None}
    _step(connection, job_id, "hit", target=JobState.CACHED, reason=reason, at=at, values=found)
    settling.done(connection, job_id, artifact=artifact, at=at)


def enqueue(
    connection: sa.Connection,
    job_id: int,
    *,
    node_id: int,
    queue: str,
    reason: str,
    term: int | None,
    device_ids: Sequence[int] = (),
) -> int:
    """Place one ready job, as :func:`enqueue_all` does many; returns the attempt's number, which is the fence.

    Raises:
        StaleTransition: the job, or the term, is not what the caller believes.
    """
    chosen = Assignment(job_id=job_id, node_id=node_id, queue=queue, device_ids=tuple(device_ids), reason=reason)
    found = enqueue_all(connection, [chosen], term=term)
    if job_id not in found:
        raise StaleTransition(f"Job j{job_id} is no longer ready: enqueue came too late.")
    return found[job_id]


def enqueue_all(connection: sa.Connection, chosen: Sequence[Assignment], *, term: int | None) -> dict[int, int]:
    """Place ready jobs on nodes and leave the messages for them; returns the attempts' numbers by job.

    A job that a user was faster with is left alone.

    Raises:
        StaleTransition: the term is over.
    """
    leadership.require_term(connection, term)
    hold_graph(connection, shared=True)
    at = now(connection)
    guessed = [{**_place_of(one, at=at), "ram_bytes": one.ram_bytes} for one in chosen if one.ram_bytes]
    predicted = [_place_of(one, at=at) for one in chosen if not one.ram_bytes]
    moved: dict[int, int] = {}
    for rows in (guessed, predicted):
        if rows:
            moved |= move_each(
                connection, rows, "enqueue", source=JobState.READY, target=JobState.QUEUED, at=at, next_attempt=True
            )
    messages = [(one.queue, one.job_id, moved[one.job_id]) for one in chosen if one.job_id in moved]
    outbox.put(connection, messages, at=at)
    return moved


def _place_of(chosen: Assignment, *, at: float) -> dict[str, Any]:
    return {
        "id": chosen.job_id,
        "reason": chosen.reason,
        "node_id": chosen.node_id,
        "placed_on": list(chosen.device_ids),
        "queued_at": at,
    }


def predict_anew(
    connection: sa.Connection, rows: Sequence[Any], predicted: Mapping[int, Estimate], *, term: int | None
) -> int:
    """Note what ready jobs are predicted to take now that more is known; returns how many of them changed.

    The memory of a job that has failed stays: it may have been raised for the next try. So does a time that is off by
    a twentieth: after each attempt that ends, the median of its kind is a little different.

    Args:
        connection: open transaction.
        rows: the jobs as :func:`farm.scheduling.candidates.heads` read them.
        predicted: by job; a job that is not in it stays as it is.
        term: of the leader.

    Raises:
        StaleTransition: the term is over.
    """
    leadership.require_term(connection, term)
    changed = [
        {
            "id": row.id,
            "expected_s": new.expected_s,
            "reserved_s": new.reserved_s,
            "ram_bytes": new.ram_bytes or row.ram_bytes,
        }
        for row in sorted(rows, key=lambda row: int(row.id))
        if (new := predicted.get(row.id)) is not None
        and (
            _differs(row.expected_s, new.expected_s)
            or _differs(row.reserved_s, new.reserved_s)
            or (new.ram_bytes not in (0, row.ram_bytes) and not row.failures)
        )
    ]
    if changed:
        statement = _note_each(connection.dialect.name, ("id", "expected_s", "reserved_s", "ram_bytes"))
        connection.execute(statement, {"rows": changed})
    return len(changed)


def explain(
    connection: sa.Connection, rows: Sequence[Any], waiting: Mapping[int, Waiting], *, term: int | None
) -> None:
    """Note why ready jobs were not placed, and when they are expected to be; no state changes.

    Only what is news is written: another sentence, or a time that is off by a tenth of what is left. A sentence that
    somebody has written since the rows were read is replaced in the next round.

    Args:
        connection: open transaction.
        rows: the jobs as :func:`farm.scheduling.candidates.heads` read them.
        waiting: by job; a job that is not in it stays as it is.
        term: of the leader.

    Raises:
        StaleTransition: the term is over.
    """
    leadership.require_term(connection, term)
    at = now(connection)
    changed = [
        {"id": row.id, "reason": new.reason, "forecast_at": new.forecast_at}
        for row in sorted(rows, key=lambda row: int(row.id))
        if (new := waiting.get(row.id)) is not None
        and (row.reason != new.reason or _moved(row.forecast_at, new.forecast_at, at=at))
    ]
    if changed:
        connection.execute(_note_each(connection.dialect.name, ("id", "reason", "forecast_at")), {"rows": changed})


@functools.cache
def _note_each(dialect: str, names: tuple[str, ...]) -> sa.Update:
    """The UPDATE that writes columns of several ready jobs at once, and leaves their state."""
    given = recordset(dialect, jobs, names)
    values: dict[str, Any] = {name: given.c[name] for name in names if name != "id"}
    if "ram_bytes" in values:  # raised for the next try of a job that has failed
        values["ram_bytes"] = sa.case((jobs.c.failures == 0, given.c.ram_bytes), else_=jobs.c.ram_bytes)
    return sa.update(jobs).where(jobs.c.id == given.c.id, jobs.c.state == str(JobState.READY)).values(**values)


def _differs(old: float | None, new: float) -> bool:
    """Whether a predicted time differs so much from what a row says that it should be written."""
    return old is None or abs(new - old) > max(_SAME_S, _SAME * old)


def _moved(old: float | None, new: float | None, *, at: float) -> bool:
    """Whether a forecast differs so much from the last one that it should be written."""
    if old is None or new is None:
        return old is not new
    return abs(new - old) > max(_NEWS_S, 0.1 * (new - at))
