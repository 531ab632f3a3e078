"""A process that does one of the operations and kills itself: ``python -m tests.proof.victim URL OPERATION MOMENT``."""

from __future__ import annotations

import os
import signal
import sys

from farm.db import open_database
from tests.proof.crashing import CrashingDatabase
from tests.proof.operations import OPERATIONS
from tests.proof.site import site_at
from tests.proof.world import World


def main() -> None:
    url, name, moment = sys.argv[1:]

    def end(number: int, _: str) -> None:
        if number == int(moment):
            os.kill(os.getpid(), signal.SIGKILL)

    # What is to be done is found out by preparing the same in a database of its own.
    with site_at(None) as site:
        act = OPERATIONS[name](World(site.database, clock=site.clock, shelf=site.shelf))
        act(CrashingDatabase(open_database(url, clock=site.clock), end=end))


if __name__ == "__main__":
    main()
