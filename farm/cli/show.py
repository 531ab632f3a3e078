"""``farm show``: a submission with its points, or a job with its attempts and history."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from farm import durations
from farm.cli import _arrivals, _ids, _words
from farm.cli._context import Context
from farm.needs import in_words
from qeff_engine import spec

if TYPE_CHECKING:
    import sqlalchemy as sa

    from farm.views import queries, sweeps

DESCRIPTION = "Show a submission with its points, or a job with its inputs, attempts and history."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("id", metavar="ID", help="s12 (a submission) or j34 (a job)")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(options: argparse.Namespace, context: Context) -> int:
    """Print one thing."""
    with context.reading() as connection:
        kind, number = _ids.either(connection, options.id)
        if kind == _ids.SUBMISSION:
            found = _submission(connection, number)
            expected = _arrivals.expected(context, connection, [found["submission"]])
        else:
            found = _job(connection, number)
    if options.json:
        document = _to_json(found)
        if kind == _ids.SUBMISSION:
            document["submission"] = {**document["submission"], "expected_at": expected.at.get(number)}
        context.out.json(document)
    elif kind == _ids.SUBMISSION:
        _print_submission(context, found, expected=expected.fully(number))
    else:
        _print_job(context, found)
    return 0


def _submission(connection: sa.Connection, number: int) -> dict[str, Any]:
    from farm.views import queries, sweeps

    return {
        "submission": queries.submission(connection, number),
        "points": sweeps.point_list(connection, number),
    }


def _job(connection: sa.Connection, number: int) -> dict[str, Any]:
    from farm.views import queries, sweeps

    job = queries.job(connection, number)
    outcome = sweeps.outcomes(connection, [number], submission_id=job.submission_id)[0]
    return {
        "job": job,
        "runs_code": _code_of(job, request=queries.submission(connection, job.submission_id).request),
        "figures": outcome.figures,
        "produced_by": outcome.producer_id,
        "inputs": {name: parent.id for name, parent in queries.inputs(connection, number).items()},
        "attempts": queries.attempt_list(connection, number),
        "events": queries.event_list(connection, job_id=number),
    }


def _code_of(job: queries.Job, *, request: dict[str, Any]) -> str:
    """What consent was given to, of code that the job runs or fetches; empty when there is none."""
    from farm.sweep import with_code

    if job.stage == spec.Stage.COMPILE:
        return ""
    names = [model["name"] for model in request.get("models", ())]
    fitting = [name for name in names if f"{job.label} ".startswith(f"{job.stage} {name} ")]
    return with_code(request).get(max(fitting, key=len), "") if fitting else ""


def _to_json(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _to_json(value) for key, value in found.items()}
    if isinstance(found, list):
        return [_to_json(value) for value in found]
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        return dataclasses.asdict(found)
    return found


def _pairs(context: Context, pairs: dict[str, str]) -> None:
    width = max(map(len, pairs))
    for name, value in pairs.items():
        if value:
            context.out.text(f"{name:<{width}}  {value}")


def _print_submission(context: Context, found: dict[str, Any], *, expected: str) -> None:
    from farm.sweep import with_code

    submission: queries.Submission = found["submission"]
    points: list[sweeps.Point] = found["points"]
    _pairs(
        context,
        {
            "submission": f"s{submission.id} {submission.name}",
            "state": submission.state,
            "paused": f"by {submission.paused_by} since {_words.moment(submission.paused_at)}"
            if submission.paused_at is not None
            else "",
            "jobs": ", ".join(f"{count} {state}" for state, count in sorted(submission.counts.items())),
            "owner": submission.owner,
            "kind": submission.kind,
            "priority": str(submission.priority),
            "labels": ", ".join(f"{key}={value}" for key, value in submission.labels.items()),
            "runs code": ", ".join(f"of {name}, {consent}" for name, consent in with_code(submission.request).items()),
            "deadline": _words.moment(submission.deadline_at),
            "created": _words.moment(submission.created_at),
            "expected": expected,
            "ended": _words.moment(submission.finished_at),
        },
    )
    context.out.text()
    axes = points[0].axes
    varied = [axis for axis in axes if len({str(point.axes[axis]) for point in points}) > 1]
    shared = ", ".join(f"{axis} {axes[axis]}" for axis in axes if axis not in varied)
    context.out.text(f"{_words.plural(len(points), 'point')}{': ' if shared else ''}{shared}")
    stages = list(dict.fromkeys(outcome.job.stage for point in points for outcome in point.outcomes))
    rows = []
    for point in points:
        cells = [str(point.axes[axis]) for axis in varied]
        jobs = [point.outcome(stage) for stage in stages]
        cells += [f"j{outcome.job.id} {outcome.job.state}" if outcome else "" for outcome in jobs]
        rows.append((str(point.number), *cells))
    context.out.table(("point", *varied, *stages), rows)


def _print_job(context: Context, found: dict[str, Any]) -> None:
    job: queries.Job = found["job"]
    producer = found["produced_by"]
    _pairs(
        context,
        {
            "job": f"j{job.id} {job.label}",
            "of": f"s{job.submission_id}",
            "stage": job.stage,
            "state": f"{job.state}: {job.reason}" if job.reason else str(job.state),
            "failure": f"{job.failure_class}: {job.failure_message}" if job.failure_class else "",
            "its line": (job.failure_line or "") if job.failure_line != job.failure_message else "",
            "what to do": job.failure_advice or "",
            "wants": _wants(job),
            "predicted": _predicted(job),
            "limits": _limits(job),
            "runs code": found["runs_code"],
            "inputs": ", ".join(f"{name} of j{parent}" for name, parent in found["inputs"].items()),
            "artifact": job.artifact or "",
            "made by": f"j{producer}" if producer not in (None, job.id) else "",
            "action": job.action_key or "",
            "created": _words.moment(job.created_at),
            "ended": _words.moment(job.finished_at),
        },
    )
    if found["figures"]:
        context.out.text()
        _pairs(context, {name: str(value) for name, value in found["figures"].items()})
    if found["attempts"]:
        context.out.text()
        context.out.table(
            ("attempt", "state", "where", "took", "CPU", "peak RSS", "message"),
            [_attempt(a) for a in found["attempts"]],
        )
    context.out.text()
    events = [
        (_words.moment(event.at), event.transition, f"{event.from_state or '-'} -> {event.to_state}", event.reason)
        for event in found["events"]
    ]
    context.out.table(("at", "transition", "states", "reason"), events)


def _wants(job: queries.Job) -> str:
    """The place that the job must have, in words."""
    what = f"{job.num_cores} cores of {_words.plural(job.num_devices, 'device')}" if job.num_cores else "a host slot"
    needed = in_words(job.needs, exclusive=job.exclusive)
    return f"{what}: {needed}" if needed else what


def _predicted(job: queries.Job) -> str:
    if job.expected_s is None:
        return ""
    memory = f", {_words.size(job.ram_bytes)} of the host's memory" if job.ram_bytes else ""
    return f"runs {_words.duration(job.expected_s)}, {_words.duration(job.reserved_s)} at most as a rule{memory}"


def _limits(job: queries.Job) -> str:
    """What the submission allows the job, in words."""
    words = [
        f"{durations.words(limit_s)} {what}"
        for limit_s, what in ((job.wait_limit_s, "of waiting for a place"), (job.run_limit_s, "of running"))
        if limit_s is not None
    ]
    if job.deadline_at is not None:
        words.append(f"deadline {_words.moment(job.deadline_at)}")
    return ", ".join(words)


def _attempt(attempt: queries.Attempt) -> tuple[str, ...]:
    took = None if attempt.finished_at is None else attempt.finished_at - attempt.started_at
    return (
        str(attempt.number),
        attempt.state,
        f"{attempt.host} {attempt.device}" if attempt.device else attempt.host,
        _words.duration(took),
        _words.duration(attempt.cpu_s),
        _words.size(attempt.peak_rss_bytes),
        (attempt.message or attempt.progress or "").partition("\n")[0],
    )
