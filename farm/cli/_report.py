"""How a report looks: a table on stdout, failures below it, or JSON or CSV."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import TYPE_CHECKING

from farm.cli import _words
from farm.cli._context import Context

if TYPE_CHECKING:
    from farm.views import reports

_CORES = "cores"  # always a column
_BEST = {"decode_tok_s": "decode", "ttft_s": "TTFT", "embeddings_s": "texts/s", "inferences_s": "inf/s"}
_RIGHT = (
    "cores",
    "TTFT",
    "decode tok/s",
    "total tok/s",
    "texts/s",
    "inf/s",
    "W",
    "J/token",
    "J/text",
    "compile",
    "program",
)
# Columns of what only some measurements have: title and figure.
_EXTRA = {"inf/s": "inferences_s", "W": "power_w", "J/token": "joules_per_token", "J/text": "joules_per_text"}


def read(context: Context, submission_id: int) -> reports.Report:
    """The report of a submission as it is now."""
    from farm.views import reports, sweeps

    with context.reading() as connection:
        return reports.build(sweeps.point_list(connection, submission_id))


def show(context: Context, report: reports.Report) -> None:
    """Write the report for people. Axes that all points share stand once, above the table."""
    rows = report.rows
    titles = _titles(rows)
    varied = [axis for axis in titles if axis == _CORES or len({str(row.axes[axis]) for row in rows}) > 1]
    encoder = any(row.embeddings_s is not None for row in rows)
    shared = [f"{title} {rows[0].axes[axis]}" for axis, title in titles.items() if axis not in varied]
    if shared:
        context.out.text(f"{_words.plural(len(rows), 'point')}: {', '.join(shared)}")
    speeds = ("latency", "texts/s") if encoder else ("TTFT", "decode tok/s", "total tok/s")
    extra = [title for title, name in _EXTRA.items() if any(getattr(row, name) is not None for row in rows)]
    simulated = {row.simulated for row in rows if row.simulated is not None}
    device = "simulated device" if simulated == {True} else "device"
    headers = [*(titles[axis] for axis in varied), device, *speeds, *extra]
    headers += ["compile", "program", "embeddings equal" if encoder else "tokens equal", "result", "best"]
    cells = [_cells(row, varied=varied, extra=extra, encoder=encoder, label=len(simulated) > 1) for row in rows]
    context.out.table(headers, cells, right=_RIGHT)
    unchecked = dict.fromkeys(row.parity_note for row in rows if row.parity_note and row.equal is None)
    for note in unchecked:
        context.out.text(f"Not checked: {note}")
    if True in simulated:
        context.out.text("Figures of simulated devices are predicted by a cost model, not measured on a card.")
    _failures(context, report)


def _titles(rows: Sequence[reports.Row]) -> dict[str, str]:
    """What the axes of these rows are called; a flag of the compiler by its name."""
    from farm.sweep import axes

    return {name: axes()[name].title if name in axes() else name for name in rows[0].axes}


def _cells(row: reports.Row, *, varied: list[str], extra: list[str], encoder: bool, label: bool) -> list[str]:
    device = row.device or ""
    if row.simulated and label:
        device = f"{device} simulated"
    speeds = (
        [_words.duration(row.latency_s), _number(row.embeddings_s)]
        if encoder
        else [_words.duration(row.ttft_s), _number(row.decode_tok_s), _number(row.total_tok_s)]
    )
    return [
        *(str(row.axes[axis]) for axis in varied),
        device,
        *speeds,
        *(_figure(getattr(row, _EXTRA[title])) for title in extra),
        _words.duration(row.compile_s),
        _words.size(row.program_bytes),
        row.parity if row.reused is not None else "",
        row.state if row.reused is None else "cached" if row.reused else "fresh",
        ", ".join(_BEST[name] for name in row.best),
    ]


def _failures(context: Context, report: reports.Report) -> None:
    if not report.failures:
        return
    classes = collections.Counter(failure.failure_class or failure.state for failure in report.failures)
    context.out.text()
    context.out.text(f"not done: {', '.join(f'{count} {name}' for name, count in classes.items())}")
    for failure in report.failures:
        words = f"{failure.failure_class}: {failure.message}" if failure.failure_class else failure.message
        context.out.text(f"  j{failure.job} {failure.label}: {words}")
        if failure.advice:
            context.out.text(f"    {failure.advice}")
    context.out.text(f"`farm why j{report.failures[0].job}` says more, `farm retry` tries again.")


def _figure(value: float | None) -> str:
    """A figure with the digits that say something, whatever its size."""
    return _number(value) if value is None or value >= 100 else f"{value:.3g}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if value < 10_000 else f"{value:,.0f}"
