"""A farm of real processes that are killed at random moments: ``python -m tests.chaos`` (``make chaos``)."""

from __future__ import annotations

import argparse
import secrets
import tempfile
from pathlib import Path

from tests.chaos.history import Tally, live_through


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="chooses what happens and when (default: any)")
    parser.add_argument("--kills", type=int, default=100, help="how many processes (default: %(default)s)")
    asked = parser.parse_args()
    seed = secrets.randbelow(10**6) if asked.seed is None else asked.seed
    home = Path(tempfile.mkdtemp(prefix="chaos-")) / "home"
    tally = Tally(seed=seed)
    print(f"seed {seed}, {asked.kills} kills, in {home}", flush=True)  # noqa: T201
    try:
        live_through(home, tally=tally, num_kills=asked.kills)
    finally:  # whatever ends it, what happened before is told
        print(tally, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
