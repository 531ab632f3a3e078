"""All figures: ``python -m benchmarks [--json] [NAME ...]``."""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from benchmarks import measure

SCRIPTS = (
    "export_smollm2",
    "export_shapes",
    "command_cpu",
    "noop_throughput",
    "farm_latency",
    "cancelling",
    "large_farm",
    "stage_start",
    "stage_cost",
    "loss",
    "quantize_smollm2",
    "precision_quality",
    "simulated_sdk",
    "store_throughput",
    "placement_replay",
    "cost_model",
)


def main() -> None:
    """Run the named benchmarks, or all, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCRIPTS)}; default all")
    parser.add_argument("--json", action="store_true", help="one line of JSON per figure")
    parser.add_argument("--runs", type=int, default=3, help="runs of each process; the median counts")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SCRIPTS):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; known: {', '.join(SCRIPTS)}")
    figures = []
    # Linux counts what a parent had into the peak memory of its child, so each benchmark has a process of its own.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as processes:
        for name in options.names or SCRIPTS:
            found = processes.submit(measure.figures_of, name, options.runs).result()
            figures += found
            if options.json:
                for figure in found:
                    print(figure.to_json(), flush=True)
    if not options.json:
        measure.show(figures)


if __name__ == "__main__":
    main()
