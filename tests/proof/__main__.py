"""Tries far more than the tests do, and says how much: ``python -m tests.proof`` (``make proof``).

Random histories with seeds that are printed, and every operation ended at every moment, on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import time
from collections.abc import Iterator

import sqlalchemy as sa

from farm.states import TRANSITIONS
from tests.databases import empty_postgresql, running_postgresql
from tests.proof.crash_points import EVERYTHING, crash_all
from tests.proof.machine import live_through
from tests.proof.operations import OPERATIONS
from tests.proof.site import site_at

AT_ONCE = 25  # histories with one seed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__.splitlines()[0])
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument(
        "--seeds", type=int, default=4, help=f"how many; {AT_ONCE} histories each (default: %(default)s)"
    )
    parser.add_argument("--first-seed", type=int, help="the others follow it (default: any)")
    parser.add_argument("--steps", type=int, default=60, help="of each history (default: %(default)s)")
    parser.add_argument("--no-crashes", action="store_true", help="histories only")
    asked = parser.parse_args()
    first = secrets.randbelow(10**6) if asked.first_seed is None else asked.first_seed
    for name in ("sqlite", "postgresql") if asked.database == "both" else (asked.database,):
        with _url(name) as url:
            for seed in range(first, first + asked.seeds):
                _live(name, url, seed=seed, num_steps=asked.steps)
            if not asked.no_crashes:
                _crash(name, url)


@contextlib.contextmanager
def _url(name: str) -> Iterator[sa.URL | None]:
    if name == "sqlite":
        yield None
    else:
        with running_postgresql() as url:
            yield url


def _live(name: str, server: sa.URL | None, *, seed: int, num_steps: int) -> None:
    began = time.process_time()
    with site_at(server and empty_postgresql(server)) as site:
        live_through(site, num_histories=AT_ONCE, num_steps=num_steps, seed=seed)
    seen = sum((str(source), way, str(target)) in site.transitions for source, way, target in TRANSITIONS)
    _say(
        f"{name}: seed {seed}: {site.num_histories} histories, {site.num_steps} steps, {site.num_transactions} "
        f"transactions, {sum(site.transitions.values())} transitions of {seen} of {len(TRANSITIONS)} kinds",
        began,
    )


def _crash(name: str, server: sa.URL | None) -> None:
    began = time.process_time()
    with site_at(server and empty_postgresql(server)) as site:
        tally = crash_all(site, OPERATIONS, thorough=EVERYTHING)
    _say(
        f"{name}: {len(OPERATIONS)} operations ended at {tally.num_moments} moments, and farms started again from "
        f"{tally.num_starts} states",
        began,
    )


def _say(text: str, began: float) -> None:
    print(f"{text} ({time.process_time() - began:.0f} s of CPU)", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
