"""``farm submit``: a sweep becomes a submission."""

from __future__ import annotations

import argparse
import collections
import dataclasses
from typing import TYPE_CHECKING, Any

from farm.cli import _parser, _report, _sweep, _wait, _words
from farm.cli._context import Context
from qeff_engine import spec

if TYPE_CHECKING:
    from farm import plan
    from farm.sweep import Sweep
    from farm.views import prediction

_KINDS = ("interactive", "nightly", "sweep")  # as in farm.models, which commands import only when they run
DESCRIPTION = (
    "Submit a sweep: every combination of the axes is a point, and what points have in common is done once. Prints "
    "the plan and returns; with --wait, goes on until all jobs have ended and prints the report."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    _sweep.add_arguments(parser)
    about = parser.add_argument_group("the submission")
    about.add_argument("--name", default="", help="for people (default: the first model's name)")
    about.add_argument("--priority", type=int, default=0, metavar="N", help="higher is sooner (0)")
    about.add_argument("--kind", choices=_KINDS, default=_KINDS[-1], help="how urgent before all priorities (sweep)")
    about.add_argument("--label", action="append", type=_label, default=[], metavar="K=V", help="may be repeated")
    about.add_argument("--owner", metavar="NAME", help="who submits (default: $FARM_OWNER, else the login)")
    about.add_argument(
        "--token", metavar="TEXT", help="submitting again with the same token returns the first submission"
    )
    clocks = parser.add_argument_group("limits of time, such as 90s, 30m, 2h, 1d; what is over one ends as a timeout")
    clocks.add_argument(
        "--wait-limit", type=_parser.duration, metavar="TIME", help="of each job, for a place while it could run (none)"
    )
    clocks.add_argument(
        "--run-limit",
        type=_parser.duration,
        metavar="TIME",
        help="of each attempt, from the start of its stage (by stage)",
    )
    clocks.add_argument(
        "--deadline", type=_parser.duration, metavar="TIME", help="of the whole submission, from now (none)"
    )
    cache = parser.add_argument_group("what is known already").add_mutually_exclusive_group()
    cache.add_argument("--no-cache", action="store_true", help="do every stage anew, and replace what is remembered")
    cache.add_argument("--fresh-runs", action="store_true", help="measure anew; all other stages may be reused")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and submit nothing")
    parser.add_argument("--wait", action="store_true", help="wait for the end; Ctrl-C stops waiting, not the jobs")
    parser.add_argument("--json", action="store_true", help="one JSON document: {submission, points, jobs, ...}")


def run(options: argparse.Namespace, context: Context) -> int:
    """Check, plan, submit, and wait when asked to."""

    from farm.sweep import with_code

    sweep = _sweep.make(options)
    anew = _anew(options)
    planned, predicted, working = _plan(context, sweep, anew=anew)
    document: dict[str, Any] = {
        "submission": None,
        "points": len(planned.points),
        "jobs": predicted.table(planned),
        "runs_code": with_code(sweep.to_json()),
        "left_out": [dataclasses.asdict(item) for item in planned.left_out],
    }
    submission_id = None if options.dry_run else _submit(options, context, sweep, planned, anew=anew)
    document["submission"] = submission_id
    if not options.json:
        _print_plan(context, planned, predicted, submission_id=submission_id)
        for name, consent in document["runs_code"].items():
            context.out.text(f"The stages of {name} run code that comes with it: {consent}")
    if options.json and (submission_id is None or not options.wait):
        context.out.json(document)
    if submission_id is None:
        return 0
    if not working:
        context.out.warn(_wait.NOT_WORKING)
    if not options.wait:
        context.out.talk(f"`farm report s{submission_id} --wait` waits for the results.")
        return 0
    return _results(options, context, submission_id, document)


def _anew(options: argparse.Namespace) -> tuple[str, ...]:
    """The stages that are done whatever is known."""
    if options.no_cache:
        return tuple(map(str, spec.Stage))
    return (str(spec.Stage.RUN),) if options.fresh_runs else ()


def _plan(context: Context, sweep: Sweep, *, anew: tuple[str, ...]) -> tuple[plan.Plan, prediction.Prediction, bool]:
    """The plan, what will become of it, and whether a scheduler works at the moment."""
    from farm import db, needs, plan
    from farm.views import inventory, prediction

    with context.reading() as connection:
        known = inventory.known_devices(connection)
        sweep = dataclasses.replace(sweep, needs=needs.with_full_sku(sweep.needs, devices=known))
        needs.check(
            sweep.needs,
            cores=sweep.cores,
            num_devices=sweep.num_devices,
            devices=known,
            hosts=inventory.host_names(connection),
        )
        planned = plan.expand(sweep)
        predicted = prediction.predict(connection, planned, toolchain=inventory.toolchain(connection), anew=anew)
        working = inventory.scheduler_works(connection, now=db.now(connection))
    return planned, predicted, working


def _submit(
    options: argparse.Namespace, context: Context, sweep: Sweep, planned: plan.Plan, *, anew: tuple[str, ...]
) -> int:
    from farm.lifecycle import jobs
    from farm.records import Limits

    with context.writing() as connection:
        return jobs.submit(
            connection,
            planned,
            name=options.name or sweep.models[0].name,
            owner=options.owner or context.settings.owner,
            priority=options.priority,
            kind=options.kind,
            labels=dict(options.label),
            request=sweep.to_json(),
            token=options.token,
            anew=anew,
            limits=Limits(wait_limit_s=options.wait_limit, run_limit_s=options.run_limit, deadline_s=options.deadline),
        )


def _results(options: argparse.Namespace, context: Context, submission_id: int, document: dict[str, Any]) -> int:
    """Wait, then print the report."""
    try:
        state = _wait.wait(context, submission_id)
    except KeyboardInterrupt:
        context.out.warn(_wait.detached(submission_id))
        raise
    report = _report.read(context, submission_id)
    if options.json:
        context.out.json({**document, "state": state, **report.to_json()})
    else:
        context.out.text()
        _report.show(context, report)
    return 1 if report.failures else 0


def _print_plan(
    context: Context, planned: plan.Plan, predicted: prediction.Prediction, *, submission_id: int | None
) -> None:
    points = _words.plural(len(planned.points), "point")
    jobs = _words.plural(len(planned.jobs), "job")
    name = f"s{submission_id}" if submission_id is not None else "Not submitted (dry run)"
    context.out.text(f"{name}: {points}, {jobs}")
    table = predicted.table(planned)
    used = [fate for fate in next(iter(table.values())) if any(row[fate] for row in table.values())]
    rows = [(stage, str(sum(row.values())), *(str(row[fate] or "-") for fate in used)) for stage, row in table.items()]
    headers = ("stage", "jobs", *map(str, used))
    context.out.table(headers, rows, right=headers[1:])
    reasons = collections.Counter(item.why for item in planned.left_out)
    for why, count in reasons.items():
        context.out.text(f"Left out: {_words.plural(count, 'point')}. {why}")


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not a label, expected KEY=VALUE")
    return key, value
