"""A process that claims jobs as fast as it can: ``python -m tests.claimant URL JOB_ID@NODE_ID...``.

It says ``ready``, waits for a line on its standard input so that several begin together, and prints what it got: a JSON
object with a list of device and core by job id.
"""

from __future__ import annotations

import json
import sys

from farm import db
from farm.errors import NoCapacity, StaleTransition
from farm.lifecycle import attempts


def main() -> None:
    url, *words = sys.argv[1:]
    database = db.open_database(url)
    database.check()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    got: dict[int, list[tuple[int, int]]] = {}
    for word in words:
        job_id, node_id = map(int, word.split("@"))
        try:
            with database.write() as connection:
                claimed = attempts.claim(connection, job_id, 1, node_id=node_id, lease_s=60)
        except (NoCapacity, StaleTransition):
            continue
        got[job_id] = [(grant.device_id, core) for grant in claimed.grants for core in grant.cores]
    sys.stdout.write(json.dumps(got))


if __name__ == "__main__":
    main()
