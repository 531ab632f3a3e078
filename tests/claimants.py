"""Several processes that claim the same jobs at the same time, see :mod:`tests.claimant`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from farm.db import Database

_ROOT = Path(__file__).parents[1]


def claim_in_processes(
    database: Database, jobs: Sequence[tuple[int, int]], *, number: int
) -> dict[int, list[tuple[int, int]]]:
    """Let processes claim queued jobs, each given with its node; every second one in the opposite order.

    Returns device and core of what they got, by job.
    """
    url = database.engine.url.render_as_string(hide_password=False)
    words = [f"{job_id}@{node_id}" for job_id, node_id in jobs]
    command = [sys.executable, "-m", "tests.claimant", url]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen([*command, *words[:: -1 if n % 2 else 1]], cwd=_ROOT, stdin=-1, stdout=-1, text=True)
            )
            for n in range(number)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * number
    answers = [json.loads(text) for text in said]
    got = [(int(job_id), [tuple(core) for core in cores]) for answer in answers for job_id, cores in answer.items()]
    assert len({job_id for job_id, _ in got}) == len(got), "a job was claimed twice"
    return {job_id: [(device, core) for device, core in cores] for job_id, cores in got}
