"""A farm of real processes that are killed at random moments: ``python -m tests.chaos`` (``make chaos``)."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import shutil
import tempfile
from pathlib import Path

from tests.chaos.history import Tally, live_through
from tests.databases import empty_postgresql, running_postgresql


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="chooses what happens and when (default: any)")
    parser.add_argument("--kills", type=int, default=100, help="how many processes (default: %(default)s)")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite", help="default: %(default)s")
    asked = parser.parse_args()
    seed = secrets.randbelow(10**6) if asked.seed is None else asked.seed
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    tally = Tally(seed=seed)
    print(f"seed {seed}, {asked.kills} kills, {asked.database}, in {directory}", flush=True)  # noqa: T201
    try:
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(running_postgresql()) if asked.database == "postgresql" else None
            url = None if server is None else empty_postgresql(server)
            live_through(directory / "home", tally=tally, num_kills=asked.kills, database_url=url)
    except AssertionError:
        print(f"what is left stays in {directory}", flush=True)  # noqa: T201
        raise
    except BaseException:
        shutil.rmtree(directory)
        raise
    else:
        shutil.rmtree(directory)
    finally:  # whatever ends it, what happened before is told
        print(tally, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
