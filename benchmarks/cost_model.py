"""The cost model's errors on published rates; ``--write`` fits it and writes its file, the docs and the plots anew."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import compile_times, cost_fit, cost_page, cost_plots, measure, published
from qeff_engine.simulated_sdk import cost_parameters

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "cost-model.md"
LEFT_OUT_FILE = Path(__file__).parent / "left_out_predictions.json"
SIGNIFICANT = 4


def fitted_table() -> dict[str, Any]:
    """The parameter file with its fitted values made anew from the priors; four significant digits."""
    chosen = [point for point in published.points() if point.fits]
    found = cost_fit.fit(chosen, start=cost_fit.initial())
    table: dict[str, Any] = json.loads(cost_parameters.FILE.read_text())
    for name in cost_fit.FREE:
        table["parameters"][name]["value"] = float(f"{getattr(found, name):.{SIGNIFICANT}g}")
    times = compile_times.fit([point for point in compile_times.points() if point.fits])
    for name, value in times.items():
        table["compile_time"][name]["value"] = float(f"{value:.{SIGNIFICANT}g}")
    return table


def text_of(table: dict[str, Any]) -> str:
    """The parameter file's text: an entry a line."""
    lines = []
    for section, entries in table.items():
        if isinstance(entries, str):
            lines.append(f" {json.dumps(section)}: {json.dumps(entries)}")
        elif all("value" in entry for entry in entries.values()):
            lines.append(f" {json.dumps(section)}: {{\n{_lines(entries, indent='  ')}\n }}")
        else:
            inner = ",\n".join(
                f"  {json.dumps(name)}: {{\n{_lines(entry, indent='   ')}\n  }}" for name, entry in entries.items()
            )
            lines.append(f" {json.dumps(section)}: {{\n{inner}\n }}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _lines(entries: dict[str, Any], *, indent: str) -> str:
    return ",\n".join(f"{indent}{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())


def left_out_predictions() -> dict[str, dict[str, float]]:
    """Of each point that is fitted: by fits without it, and without its network."""
    chosen = [point for point in published.points() if point.fits]
    fitted = cost_parameters.load()
    groups = {"one": lambda point: point.id, "network": lambda point: point.model}
    return {
        name: {
            key: float(f"{value:.5g}") for key, value in cost_fit.left_out(chosen, fitted=fitted, group=group).items()
        }
        for name, group in groups.items()
    }


def write() -> None:
    """Fit, cross-validate, and write everything that follows from it."""
    cost_parameters.FILE.write_text(text_of(fitted_table()))
    cost_parameters.table.cache_clear()
    cost_parameters.load.cache_clear()
    LEFT_OUT_FILE.write_text(json.dumps(left_out_predictions(), indent=1) + "\n")
    write_docs()


def write_docs() -> None:
    """Write the page and its plots from the files."""
    points = published.points()
    PAGE.write_text(cost_page.page(PAGE.read_text(), points=points, left_out=json.loads(LEFT_OUT_FILE.read_text())))
    (DOCS / "cost-model-points.svg").write_text(cost_plots.scatter(points))
    (DOCS / "cost-model-sweeps.svg").write_text(cost_plots.sweeps(cost_page.curves()))


def measure_all(runs: int) -> list[measure.Figure]:
    """Median and worst error of each group of points, in the fit; deterministic, so one run is enough."""
    found = []
    for group, words in cost_page.GROUPS.items():
        errors = [
            abs(cost_fit.error(point, cost_fit.predicted(point)))
            for point in published.points()
            if point.fits and point.group == group
        ]
        goals = (("median", statistics.median(errors), 15.0), ("worst", max(errors), 35.0))
        for name, value, goal in goals:
            found.append(measure.Figure(name=f"{name} error, {words}", ours=100 * value, unit="%", goal=goal))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, add_help=False)
    parser.add_argument("--write", action="store_true")
    if parser.parse_known_args()[0].write:
        write()
        sys.exit(0)
    measure.main(measure_all)
