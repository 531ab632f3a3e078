"""All figures: ``python -m benchmarks [--json] [NAME ...]``."""

from __future__ import annotations

import argparse
import importlib

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
    for name in options.names or SCRIPTS:
        found = importlib.import_module(f"benchmarks.{name}").measure_all(options.runs)
        figures += found
        if options.json:
            for figure in found:
                print(figure.to_json(), flush=True)
    if not options.json:
        measure.show(figures)


if __name__ == "__main__":
    main()
