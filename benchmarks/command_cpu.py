"""CPU of ``farm --help``, ``farm list`` and ``farm submit`` as whole processes, beside the bare interpreter."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks import measure
from benchmarks.export_smollm2 import gguf_path

GOALS_MS = {"--help": 50.0, "list": 300.0, "submit": 300.0}


def measure_all(runs: int) -> list[measure.Figure]:
    """Milliseconds of CPU per command; at least seven runs, since one is short."""
    runs = max(runs, 7)
    with tempfile.TemporaryDirectory(prefix="bench-cli-") as name:
        home = Path(name) / "home"
        home.mkdir()
        environ = {"FARM_HOME": str(home)}
        measure.run([sys.executable, "-m", "farm.schema", "upgrade"], environ=environ)
        commands = {
            "--help": ["--help"],
            "list": ["list"],
            "submit": ["submit", "--model", str(gguf_path()), "--cores", "8,14,16"],
        }
        bare = measure.median([measure.run([sys.executable, "-c", "pass"]) for _ in range(runs)])
        figures = []
        for command, arguments in commands.items():
            used = measure.median(
                [measure.run([sys.executable, "-m", "farm", *arguments], environ=environ) for _ in range(runs)]
            )
            figures.append(
                measure.Figure(
                    name=f"farm {command}, CPU beside a bare interpreter",
                    ours=used.cpu_s * 1e3,
                    peer=bare.cpu_s * 1e3,
                    unit="ms",
                    goal=GOALS_MS[command],
                )
            )
    return figures


if __name__ == "__main__":
    measure.main(measure_all, runs=7)
