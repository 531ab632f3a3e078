"""A process that claims jobs as fast as it can: ``python -m tests.claimant URL NODE_ID JOB_ID...``.

It says ``ready``, waits for a line on its standard input so that several begin together, and prints what it got: a JSON
object with the core numbers by job id.
"""

from __future__ import annotations

import json
import sys

from farm import attempts, db
from farm.errors import NoCapacity, StaleTransition


def main() -> None:
    url, node_id, *job_ids = sys.argv[1:]
    database = db.open_database(url)
    database.check()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    got: dict[int, list[int]] = {}
    for job_id in map(int, job_ids):
        try:
            with database.write() as connection:
                claimed = attempts.claim(connection, job_id, 1, node_id=int(node_id), lease_s=60)
        except (NoCapacity, StaleTransition):
            continue
        got[job_id] = [core for grant in claimed.grants for core in grant.cores]
    sys.stdout.write(json.dumps(got))


if __name__ == "__main__":
    main()
