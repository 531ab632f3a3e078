"""A process that admits and cancels as fast as it can: ``python -m tests.admitter URL KEY JOB_ID...``.

It says ``ready``, waits for a line on its standard input so that several begin together, and admits the jobs with one
key, each in a transaction of its own. A job id with a ``-`` before it is cancelled instead.
"""

from __future__ import annotations

import contextlib
import sys

from farm import db
from farm.errors import Refused
from farm.lifecycle import admission, jobs


def main() -> None:
    url, key, *words = sys.argv[1:]
    database = db.open_database(url)
    database.check()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    for number in map(int, words):
        with contextlib.suppress(Refused), database.write() as connection:  # another process was first
            if number < 0:
                jobs.cancel(connection, -number)
            else:
                admission.admit_all(connection, [(number, key, {})], term=None)


if __name__ == "__main__":
    main()
