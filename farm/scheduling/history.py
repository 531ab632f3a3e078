"""What the farm has learnt: running times and memory of kinds of work, and how much each owner has used.

The leading scheduler learns from attempts that have ended, each once: the mark on the attempt's row is set in the
transaction that adds it. Nothing is learnt where attempts end, so that ending one costs no more for it.
"""

from __future__ import annotations

import collections
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from farm.db import now, recordset
from farm.lifecycle import leadership
from farm.lifecycle.transitions import chunks
from farm.models import attempts, devices, edges, history, hosts, jobs, literal, nodes, owners
from farm.needs import sdk_of
from farm.placement import estimates
from farm.placement.estimates import Estimate, Sample
from farm.plan import PROGRAM
from farm.scheduling.capacity import use_of_running
from qeff_engine.spec import Stage

_NUM_MODELS = 4  # that a device is remembered to have run
_NUM_REMEMBERED = 16_384  # kinds of work whose keys are not made anew: a round asks for a thousand, mostly the same
_UNLEARNT = (
    sa.select(attempts.c.job_id, attempts.c.number)
    .where(attempts.c.learnt == literal(0), attempts.c.finished_at.is_not(None))
    .order_by(attempts.c.finished_at)
    .limit(sa.bindparam("limit"))
)
_UPDATE = (
    sa.update(history)
    .where(history.c.key == sa.bindparam("the_key"))
    .values(samples=sa.bindparam("kept", type_=sa.JSON), updated_at=sa.bindparam("at"))
)


def anything_new(connection: sa.Connection) -> bool:
    """Whether there is an attempt to learn from."""
    return connection.execute(_UNLEARNT, {"limit": 1}).first() is not None


def learn(connection: sa.Connection, *, limit: int, half_life_s: float, term: int | None) -> int:
    """Add the attempts that ended longest ago and are not learnt yet; returns how many.

    Args:
        connection: open transaction.
        limit: how many at most.
        half_life_s: after which half of an owner's use is forgotten.
        term: of the leader.

    Raises:
        StaleTransition: the term is over.
    """
    leadership.require_term(connection, term)
    ended = _mark(connection, limit=limit)
    if not ended:
        return 0
    work = kinds_of_work(connection, {row.job_id for row in ended})
    sdks = _sdk_by_node(connection, {row.node_id for row in ended})
    at = now(connection)
    _remember(connection, ended, work=work, sdks=sdks, at=at)
    _charge(connection, ended, work=work, half_life_s=half_life_s)
    _note_models(connection, ended, work=work)
    return len(ended)


def num_keys(connection: sa.Connection) -> int:
    """How many keys have samples."""
    return connection.execute(sa.select(sa.func.count()).select_from(history)).scalar_one()


def forget(connection: sa.Connection, *, num_keys: int, term: int | None) -> int:
    """Forget the keys that got no sample for longest, all but ``num_keys``; returns how many.

    A coarse key gets a sample whenever a finer one does, so predictions fall back to it as for work that is new: of
    keys of one moment the finest, which are the longest, go first. No key that stays loses a sample.

    Raises:
        StaleTransition: the term is over.
    """
    leadership.require_term(connection, term)
    newest_first = (history.c.updated_at.desc(), sa.func.length(history.c.key), history.c.key)
    old = connection.scalars(sa.select(history.c.key).order_by(*newest_first).offset(num_keys)).all()
    for some in chunks(old):
        connection.execute(sa.delete(history).where(history.c.key.in_(some)))
    return len(old)


def _mark(connection: sa.Connection, *, limit: int) -> list[Any]:
    """The attempts to learn from, which nobody else will learn from now; in the order in which they ended."""
    found = connection.execute(_UNLEARNT, {"limit": limit}).all()
    columns = ("job_id", "number", "state", "node_id", "started_at", "finished_at", "peak_rss_bytes", "placed_on")
    marked: list[Any] = []
    for some in chunks(found):
        marked += connection.execute(
            sa.update(attempts)
            .where(sa.tuple_(attempts.c.job_id, attempts.c.number).in_([tuple(key) for key in some]))
            .where(attempts.c.learnt == 0)
            .values(learnt=1)
            .returning(*(attempts.c[name] for name in columns))
        )
    return sorted(marked, key=lambda row: (row.finished_at, row.job_id, row.number))


def kinds_of_work(connection: sa.Connection, job_ids: Iterable[int]) -> dict[int, Any]:
    """By job: a row with what its keys are made of; ``spec`` and ``program`` are JSON texts."""
    rows = [{"id": job_id} for job_id in sorted(job_ids)]
    if not rows:
        return {}
    return {row.id: row for row in connection.execute(_kinds_of_work(connection.dialect.name), {"rows": rows})}


@functools.cache
def _kinds_of_work(dialect: str) -> sa.Select[Any]:
    given = recordset(dialect, jobs, ["id"])
    program = jobs.alias("program")
    return (
        sa.select(
            *(jobs.c[name] for name in ("id", "stage", "model", "owner", "num_cores", "num_devices")),
            sa.cast(jobs.c.spec, sa.Text).label("spec"),
            sa.cast(program.c.spec, sa.Text).label("program"),
        )
        .select_from(given)
        .join(jobs, jobs.c.id == given.c.id)
        .outerjoin(edges, sa.and_(edges.c.child_id == jobs.c.id, edges.c.input == PROGRAM))
        .outerjoin(program, program.c.id == edges.c.parent_id)
    )


def keys(work: Any, *, sdk: str) -> tuple[str, ...]:
    """What the running times of a row of :func:`kinds_of_work` are remembered under, finest first."""
    return _keys(work.stage, work.spec, work.program, work.model, sdk, work.num_cores, work.num_devices)


@functools.lru_cache(maxsize=_NUM_REMEMBERED)
def _keys(
    stage: str, spec: str, program: str | None, model: str, sdk: str, num_cores: int, num_devices: int
) -> tuple[str, ...]:
    return estimates.keys_of(
        stage,
        spec=json.loads(spec),
        model=model,
        sdk=sdk,
        num_cores=num_cores,
        num_devices=num_devices,
        program=None if program is None else json.loads(program),
    )


def _sdk_by_node(connection: sa.Connection, node_ids: Iterable[int]) -> dict[int, str]:
    query = (
        sa.select(nodes.c.id, hosts.c.toolchain)
        .join(hosts, hosts.c.id == nodes.c.host_id)
        .where(nodes.c.id.in_(list(node_ids)))
    )
    return {row.id: sdk_of(row.toolchain) for row in connection.execute(query)}


def _remember(
    connection: sa.Connection, ended: Sequence[Any], *, work: Mapping[int, Any], sdks: Mapping[int, str], at: float
) -> None:
    """Add running time and memory of the attempts that succeeded to all of their keys."""
    found = {
        (row.job_id, row.number): keys(work[row.job_id], sdk=sdks[row.node_id])
        for row in ended
        if row.state == "succeeded"
    }
    samples = _samples(connection, {key for some in found.values() for key in some})
    known = set(samples)
    changed: dict[str, Sequence[Sample]] = dict(samples)
    for row in ended:
        for key in found.get((row.job_id, row.number), ()):
            changed[key] = estimates.remember(
                changed.get(key, ()),
                seconds=row.finished_at - row.started_at,
                peak_rss_bytes=row.peak_rss_bytes or 0,
            )
    touched = sorted({key for some in found.values() for key in some})
    old = [{"the_key": key, "kept": changed[key]} for key in touched if key in known]
    new = [{"key": key, "samples": changed[key], "updated_at": at} for key in touched if key not in known]
    if old:
        connection.execute(_UPDATE, [{**row, "at": at} for row in old])
    if new:
        connection.execute(sa.insert(history), new)


def _samples(connection: sa.Connection, some_keys: Iterable[str]) -> dict[str, Sequence[Sample]]:
    rows = [{"key": key} for key in sorted(some_keys)]
    if not rows:
        return {}
    return {row.key: row.samples for row in connection.execute(_samples_of(connection.dialect.name), {"rows": rows})}


@functools.cache
def _samples_of(dialect: str) -> sa.Select[Any]:
    given = recordset(dialect, history, ["key"])
    return sa.select(history.c.key, history.c.samples).select_from(given.join(history, history.c.key == given.c.key))


def _charge(connection: sa.Connection, ended: Sequence[Any], *, work: Mapping[int, Any], half_life_s: float) -> None:
    """Add what the attempts have used to their owners' accounts, which halve with every half-life."""
    known = {row.name: dict(row._mapping) for row in connection.execute(sa.select(owners).with_for_update())}
    accounts: dict[str, dict[str, Any]] = {}
    for row in ended:
        name = work[row.job_id].owner
        fresh = {"name": name, "core_seconds": 0.0, "slot_seconds": 0.0, "updated_at": row.finished_at}
        account = accounts.setdefault(name, dict(known.get(name, fresh)))
        _decay(account, at=row.finished_at, half_life_s=half_life_s)
        num_cores = sum(len(place["cores"]) for place in row.placed_on or ())
        account["core_seconds" if num_cores else "slot_seconds"] += max(1, num_cores) * (
            row.finished_at - row.started_at
        )
    statement = sa.update(owners).where(owners.c.name == sa.bindparam("the_owner"))
    for name in sorted(accounts):
        if name in known:
            values = {key: value for key, value in accounts[name].items() if key != "name"}
            connection.execute(statement, {"the_owner": name, **values})
        else:
            connection.execute(sa.insert(owners), accounts[name])


def _decay(account: dict[str, Any], *, at: float, half_life_s: float) -> None:
    """Bring an account to a later time; an attempt that ended before that is charged in full."""
    passed_s = at - account["updated_at"]
    if passed_s > 0:
        for name in ("core_seconds", "slot_seconds"):
            account[name] *= 0.5 ** (passed_s / half_life_s)
        account["updated_at"] = at


def _note_models(connection: sa.Connection, ended: Sequence[Any], *, work: Mapping[int, Any]) -> None:
    """Remember which models devices have run lately: they have their programs and files at hand."""
    ran: dict[int, list[str]] = collections.defaultdict(list)
    for row in ended:
        for place in row.placed_on or ():
            if work[row.job_id].model:
                ran[place["device_id"]].insert(0, work[row.job_id].model)
    if not ran:
        return
    for row in connection.execute(sa.select(devices.c.id, devices.c.models).where(devices.c.id.in_(sorted(ran)))).all():
        models = list(dict.fromkeys([*ran[row.id], *(row.models or ())]))[:_NUM_MODELS]
        if models != row.models:
            connection.execute(sa.update(devices).where(devices.c.id == row.id).values(models=models))


def predict(connection: sa.Connection, job_ids: Iterable[int], *, sdk: str) -> dict[int, Estimate]:
    """What jobs are predicted to take, by job, as far as the farm has seen the like.

    Args:
        connection: a read transaction.
        job_ids: which jobs.
        sdk: version of the SDK that they will find.
    """
    found = {job_id: keys(work, sdk=sdk) for job_id, work in kinds_of_work(connection, job_ids).items()}
    kinds = set(found.values())
    samples = _samples(connection, {key for some in kinds for key in some})
    predicted = {some: estimates.estimate(samples, some) for some in kinds}
    return {job_id: predicted[some] for job_id, some in found.items()}


def typical_s(connection: sa.Connection) -> dict[str, float]:
    """The running time by stage, whatever the model."""
    samples = _samples(connection, list(map(str, Stage)))
    return {str(stage): estimates.estimate(samples, (str(stage),)).expected_s for stage in Stage}


def shares(connection: sa.Connection, *, half_life_s: float) -> dict[str, float]:
    """By owner: the core-seconds that count against him now, running attempts included. A slot counts as a core."""
    at = now(connection)
    found = use_of_running(connection, at=at)
    for row in connection.execute(sa.select(owners)):
        account = dict(row._mapping)
        _decay(account, at=at, half_life_s=half_life_s)
        found[row.name] = found.get(row.name, 0.0) + account["core_seconds"] + account["slot_seconds"]
    return found
