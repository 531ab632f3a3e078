"""What a sweep found out: a row per point, the best points of each model, the failures. Pure.

How a report looks on a terminal is the command line's business; JSON and CSV have the keys of :class:`Row`.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from typing import Any

from farm.states import DONE, JobState
from farm.views.sweeps import Outcome, Point

# Figures of the stages that become columns under the same name.
_COMPILE_FIGURES = ("compile_s", "program_bytes")
_RUN_FIGURES = (
    "simulated",
    "ttft_s",
    "decode_tok_s",
    "total_tok_s",
    "latency_s",
    "embeddings_s",
    "inferences_s",
    "queued_latency_s",
    "power_w",
    "joules_per_token",
    "joules_per_text",
    "num_tokens_equal",
    "num_generated_tokens",
    "max_abs_diff",
    "parity_note",
)
# In which figures a point may be the best of its model; 1 where less is better.
_BEST = {"decode_tok_s": -1.0, "ttft_s": 1.0, "embeddings_s": -1.0, "inferences_s": -1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A point of a sweep as a line of the report. What is not known (yet) is None.

    Attributes:
        axes: the point's value by axis: model, cores and so on, and the flags of the compiler that were asked for.
        state: of the point: the state of its last job, or of the job that stopped it.
        reused: the measurement was made for an earlier job with the same action key.
        simulated: the figures come from a simulated device.
        latency_s: of an encoder's call; ``embeddings_s`` texts per second.
        inferences_s: texts per second with queued calls; ``queued_latency_s`` is how long a call takes then.
        power_w: mean of the boards during the run, where the host shows it; so ``joules_per_token`` and
            ``joules_per_text``.
        equal: whether the output is the original model's; None when that was not checked.
        num_tokens_equal: tokens before the first difference, of ``num_generated_tokens``.
        max_abs_diff: of an encoder's embeddings.
        best: in which figures the point is the best of its model: one of ``decode_tok_s``, ``ttft_s``,
            ``embeddings_s``, ``inferences_s``.
    """

    point: int
    axes: dict[str, Any]
    state: str
    host: str | None = None
    device: str | None = None
    simulated: bool | None = None
    reused: bool | None = None
    ttft_s: float | None = None
    decode_tok_s: float | None = None
    total_tok_s: float | None = None
    compile_s: float | None = None
    program_bytes: int | None = None
    latency_s: float | None = None
    embeddings_s: float | None = None
    inferences_s: float | None = None
    queued_latency_s: float | None = None
    power_w: float | None = None
    joules_per_token: float | None = None
    joules_per_text: float | None = None
    equal: bool | None = None
    num_tokens_equal: int | None = None
    num_generated_tokens: int | None = None
    max_abs_diff: float | None = None
    parity_note: str | None = None
    run_job: int | None = None
    best: tuple[str, ...] = ()

    @property
    def parity(self) -> str:
        """``yes``; ``23 of 32`` tokens before the first difference; ``off by 0.03``; or ``not checked``."""
        if self.equal is None:
            return "not checked"
        if self.equal:
            return "yes"
        if self.num_tokens_equal is not None:
            return f"{self.num_tokens_equal} of {self.num_generated_tokens}"
        return f"off by {self.max_abs_diff:.2g}" if self.max_abs_diff is not None else "no"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that failed or was cancelled, and the points that it stopped."""

    job: int
    label: str
    state: str
    failure_class: str | None
    message: str
    points: tuple[int, ...]
    line: str = ""
    advice: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """All of it."""

    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values; rows have the keys of :class:`Row`, those of the axes and ``parity``."""
        return {
            "rows": [_row_json(row) for row in self.rows],
            "failures": [{**dataclasses.asdict(item), "points": list(item.points)} for item in self.failures],
        }

    def to_csv(self) -> str:
        """A header and a line per row; what is not known is empty."""
        text = io.StringIO()
        names = list(dict.fromkeys(name for row in self.rows for name in _row_json(row)))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({**_row_json(row), "best": " ".join(row.best)})
        return text.getvalue()


def build(points: Iterable[Point]) -> Report:
    """The report of a submission's points."""
    points = list(points)
    rows = _mark_best([_row(point) for point in points])
    stopped: dict[int, list[int]] = collections.defaultdict(list)
    culprits: dict[int, Outcome] = {}
    for point in points:
        for outcome in point.outcomes:
            if outcome.job.state in (JobState.FAILED, JobState.CANCELLED):
                culprits[outcome.job.id] = outcome
                stopped[outcome.job.id].append(point.number)
    failures = [_failure(culprits[job_id], stopped[job_id]) for job_id in sorted(culprits)]
    return Report(rows=tuple(rows), failures=tuple(failures))


def _row(point: Point) -> Row:
    compiled, run = point.outcome("compile"), point.outcome("run")
    figures = {**_compile_figures(compiled), **_run_figures(run)}
    return Row(point=point.number, axes=dict(point.axes), state=_state(point), **figures)


def _state(point: Point) -> str:
    states = [outcome.job.state for outcome in point.outcomes]
    for state in (JobState.FAILED, JobState.CANCELLED, JobState.BLOCKED):
        if state in states:
            return str(state)
    return str(next((state for state in states if state not in DONE), states[-1]))


def _compile_figures(compiled: Outcome | None) -> dict[str, Any]:
    if compiled is None or compiled.job.state not in DONE:
        return {}
    return {name: compiled.figures.get(name) for name in _COMPILE_FIGURES}


def _run_figures(run: Outcome | None) -> dict[str, Any]:
    if run is None:
        return {}
    if run.job.state not in DONE:
        return {"run_job": run.job.id}
    figures = run.figures
    found: dict[str, Any] = {name: figures.get(name) for name in _RUN_FIGURES}
    found["equal"] = figures.get("tokens_equal", figures.get("embeddings_equal"))
    if "qid" in figures:
        found["device"] = f"{figures['sku']}/{figures['qid']}"
    if run.device is not None:
        found["host"] = run.device.host
    return {**found, "run_job": run.job.id, "reused": run.job.state == JobState.CACHED}


def _mark_best(rows: Sequence[Row]) -> list[Row]:
    """The same rows, the best of each model marked where there is something to compare with."""
    marks: dict[int, list[str]] = collections.defaultdict(list)
    by_model: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        by_model[row.axes["model"]].append(row)
    for of_model in by_model.values():
        for name, sign in _BEST.items():
            measured = [(sign * getattr(row, name), row.point) for row in of_model if getattr(row, name) is not None]
            if len(measured) > 1:
                marks[min(measured)[1]].append(name)
    return [dataclasses.replace(row, best=tuple(marks[row.point])) for row in rows]


def _failure(outcome: Outcome, points: list[int]) -> Failure:
    job = outcome.job
    lines = (job.failure_message or job.reason or "").strip().splitlines()
    return Failure(
        job=job.id,
        label=job.label,
        state=str(job.state),
        failure_class=job.failure_class,
        message=lines[0] if lines else "",
        points=tuple(points),
        line=job.failure_line or "",
        advice=job.failure_advice or "",
    )


def _row_json(row: Row) -> dict[str, Any]:
    fields = {**dataclasses.asdict(row), "best": list(row.best), "parity": row.parity}
    axes = fields.pop("axes")
    return {"point": fields.pop("point"), **axes, **fields}
