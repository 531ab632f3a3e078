"""How a report looks: a table on stdout, failures below it, or JSON or CSV."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from farm.cli import _words
from farm.cli._context import Context

if TYPE_CHECKING:
    from farm import reports

_BEST = {"decode_tok_s": "fastest decode", "ttft_s": "fastest first token", "embeddings_s": "most texts a second"}
_RIGHT = ("cores", "TTFT", "decode tok/s", "total tok/s", "texts/s", "compile", "program")


def read(context: Context, submission_id: int) -> reports.Report:
    """The report of a submission as it is now."""
    from farm import queries, reports

    with context.reading() as connection:
        return reports.build(queries.point_list(connection, submission_id))


def show(context: Context, report: reports.Report) -> None:
    """Write the report for people."""
    rows = report.rows
    encoder = any(row.embeddings_s is not None for row in rows)
    varied = [
        axis
        for axis, usual in (("kv", "fp16"), ("batch", 1), ("ctx_len", None), ("prefill_len", None))
        if len({getattr(row, axis) for row in rows}) > 1 or (usual and any(getattr(row, axis) != usual for row in rows))
    ]
    speeds = ("latency", "texts/s") if encoder else ("TTFT", "decode tok/s", "total tok/s")
    headers = ["model", "quantize", "precision", *varied, "cores", "device", *speeds]
    headers += ["compile", "program", "tokens equal", "result", "best"]
    context.out.table(headers, [_cells(row, varied=varied, encoder=encoder) for row in rows], right=_RIGHT)
    if any(row.simulated for row in rows):
        context.out.text("Figures of devices marked simulated are predicted by a cost model, not measured on a card.")
    _failures(context, report)


def _cells(row: reports.Row, *, varied: list[str], encoder: bool) -> list[str]:
    device = row.device or ""
    if row.simulated:
        device = f"{device} simulated"
    speeds = (
        [_words.duration(row.latency_s), _number(row.embeddings_s)]
        if encoder
        else [_words.duration(row.ttft_s), _number(row.decode_tok_s), _number(row.total_tok_s)]
    )
    result = row.state if row.reused is None else "cached" if row.reused else "fresh"
    return [
        row.model,
        row.quantize,
        row.precision,
        *(str(getattr(row, axis)) for axis in varied),
        str(row.cores),
        device,
        *speeds,
        _words.duration(row.compile_s),
        _words.size(row.program_bytes),
        row.parity if row.reused is not None else "",
        result,
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
    context.out.text(f"`farm why j{report.failures[0].job}` says more, `farm retry` tries again.")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if value < 10_000 else f"{value:,.0f}"
