"""How much of a plan is done already, before it is submitted. Reads only.

The action key of a resolve is known from its spec. Where an action is done, its artifact's digest gives the action keys
of the jobs behind it, and so on downwards until something is new.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Collection, Iterable, Mapping, Sequence

import sqlalchemy as sa

from farm import plan
from farm.db import now
from farm.lifecycle import results
from farm.models import jobs
from qeff_engine import spec
from qeff_engine.actions import action_key

_CHUNK = 500  # values of one IN list; SQLite allows 32766 parameters, planning time grows with them


class Fate(enum.StrEnum):
    """What will become of a planned job."""

    CACHED = "cached"  # done already
    SHARED = "shared"  # a live job of an earlier submission does the same work
    NEW = "new"
    FAILS = "fails"  # known to fail, and will be told so without a try


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """The fate of each job of a plan, by plan key, in the plan's order."""

    fates: dict[str, Fate]

    def table(self, planned: plan.Plan) -> dict[str, dict[Fate, int]]:
        """Number of jobs by stage and fate, stages in the order of the pipeline; only stages that occur."""
        counts: dict[str, dict[Fate, int]] = {}
        for stage in spec.Stage:
            tally = collections.Counter(self.fates[job.plan_key] for job in planned.jobs if job.stage == stage)
            if tally:
                counts[str(stage)] = {fate: tally[fate] for fate in Fate}
        return counts


def predict(
    connection: sa.Connection,
    planned: plan.Plan,
    *,
    toolchain: Mapping[str, str],
    anew: Collection[str] = (),
) -> Prediction:
    """The fates of a plan's jobs as things stand now; the stages ``anew`` are done whatever is known."""
    at = now(connection)
    live_plans = _live_plan_keys(connection, [job.plan_key for job in planned.jobs])
    digests: dict[str, str] = {}  # artifact by plan key, of what is done
    fates: dict[str, Fate] = {}
    for stage in spec.Stage:  # a job's inputs are of earlier stages
        keys = {}
        for job in planned.jobs:
            if job.stage == stage and all(parent in digests for parent in job.inputs.values()):
                inputs = {name: digests[parent] for name, parent in job.inputs.items()}
                key, _ = action_key(stage, fields=job.fields, input_digests=inputs, toolchain=toolchain)
                keys[job.plan_key] = key
        if stage in anew:
            fates.update((job.plan_key, Fate.NEW) for job in planned.jobs if job.stage == stage)
            continue
        done = results.artifacts_of(connection, list(keys.values()), at=at)
        live = _live_action_keys(connection, [key for key in keys.values() if key not in done])
        for job in (job for job in planned.jobs if job.stage == stage):
            known = keys.get(job.plan_key)
            if known in done:
                artifact = done[known]
                fates[job.plan_key] = Fate.CACHED if artifact else Fate.FAILS
                if artifact:
                    digests[job.plan_key] = artifact
            else:
                shared = known in live or job.plan_key in live_plans
                fates[job.plan_key] = Fate.SHARED if shared else Fate.NEW
    return Prediction(fates={job.plan_key: fates[job.plan_key] for job in planned.jobs})


def _live_action_keys(connection: sa.Connection, keys: Sequence[str]) -> set[str]:
    return _live(connection, jobs.c.action_key, keys)


def _live_plan_keys(connection: sa.Connection, keys: Sequence[str]) -> set[str]:
    return _live(connection, jobs.c.plan_key, keys)


def _live(connection: sa.Connection, column: sa.Column[str], keys: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for chunk in _chunks(keys):
        query = sa.select(column).where(column.in_(chunk), jobs.c.finished_at.is_(None))
        found.update(connection.execute(query).scalars())
    return found


def _chunks(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))
