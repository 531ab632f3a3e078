"""A farm of two hosts on PostgreSQL whose store is in S3, with real processes: what one host made, the other reads."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from farm import settings as farm_settings
from farm.models import attempts, hosts, nodes
from farm.settings import Settings
from farm.states import JobState
from farm.store import stores
from farm.store.collection import Policy, collect, places
from tests import small_sweep
from tests.acceptance.running_farm import RunningFarm, running_farm
from tests.databases import empty_postgresql
from tests.s3_server import S3Server, fresh_bucket

OTHER = "the-other-host"


@pytest.fixture(scope="module")
def farm(
    postgresql_url: sa.URL, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningFarm]:
    home = tmp_path_factory.mktemp("first") / "home"
    of_store = {"store_url": fresh_bucket(s3_server), "store_options": json.dumps(s3_server.options())}
    with running_farm(home, database_url=empty_postgresql(postgresql_url), **of_store) as found:
        yield found


@contextlib.contextmanager
def second_host(farm: RunningFarm, home: Path) -> Iterator[Settings]:
    """Nodes of another host that shares database, broker and bucket with the farm, and nothing else."""
    settings = dataclasses.replace(
        farm.settings, home=home, store=home / "store", host=OTHER, sdk_root=farm.settings.home / "sdk"
    )
    for directory in (settings.run_dir, settings.log_dir, settings.store):
        directory.mkdir(parents=True)
    environ = {**os.environ, **farm_settings.to_environ(settings)}
    nodes = []
    with contextlib.ExitStack() as logs:
        try:
            for arguments in (["host"], ["device", "--qid", "0"]):
                log = logs.enter_context((settings.log_dir / f"{arguments[0]}.log").open("w"))
                command = [sys.executable, "-m", "tests.small_node", *arguments]
                nodes.append(subprocess.Popen(command, env=environ, stdout=log, stderr=subprocess.STDOUT))
            yield settings
        finally:
            for node in nodes:
                node.terminate()
            for node in nodes:
                node.wait()


def farm_command(settings: Settings, *arguments: str) -> Any:
    """What a command of a host says in JSON."""
    environ = {**os.environ, **farm_settings.to_environ(settings)}
    done = subprocess.run(
        [sys.executable, "-m", "farm", *arguments, "--json"], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return json.loads(done.stdout)


def hosts_of(farm: RunningFarm, submission_id: int) -> set[str]:
    """Where the attempts of a submission ran."""
    job_ids = [job.id for job in farm.jobs(submission_id)]
    query = (
        sa.select(hosts.c.name)
        .join(nodes, nodes.c.host_id == hosts.c.id)
        .join(attempts, attempts.c.node_id == nodes.c.id)
        .where(attempts.c.job_id.in_(job_ids))
    )
    with farm.database.read() as connection:
        return set(connection.scalars(query))


def test_a_second_host_goes_on_with_what_the_first_made(farm: RunningFarm, tmp_path: Path) -> None:
    here = farm.settings
    first = farm.submit(small_sweep.plan("model", cores=(8,)))
    farm.wait_for_end(first)
    farm.assert_sound(first)
    assert hosts_of(farm, first) == {here.host}
    farm_command(here, "drain", here.host)
    with second_host(farm, tmp_path / "home") as other:
        second = farm.submit(small_sweep.plan("model", cores=(8, 14)))
        farm.wait_for_end(second)
        farm.assert_sound(second)
        # The export that the first host made is read by the compile of the other.
        states = [job.state for job in farm.jobs(second)]
        assert {state: states.count(state) for state in states} == {JobState.CACHED: 4, JobState.SUCCEEDED: 2}
        assert hosts_of(farm, second) == {OTHER}
        assert read_as(here, farm, second) == read_as(other, farm, second)
        rows = farm_command(other, "report", f"s{second}")["rows"]
        assert [(row["cores"], row["host"], row["reused"]) for row in rows] == [
            (8, here.host, True),
            (14, OTHER, False),
        ]

        assert farm_command(here, "fsck", "--deep") == farm_command(other, "fsck", "--deep") == []
        assert farm_command(other, "gc", "--budget", "1B")["num_artifacts"] == 6  # all of it was used just now
        collected = collect(farm.database, places(other), policy=Policy(budget_bytes=1, grace_s=0.0, recent_s=0.0))
        assert len(collected.deleted) == 6
        assert farm_command(here, "fsck", "--deep") == farm_command(other, "fsck", "--deep") == []

        third = farm.submit(small_sweep.plan("model", cores=(8, 14)))
        farm.wait_for_end(third)
        farm.assert_sound(third)
        assert {job.state for job in farm.jobs(third)} == {JobState.SUCCEEDED}
    farm_command(here, "undrain", here.host)


def read_as(settings: Settings, farm: RunningFarm, submission_id: int) -> list[str]:
    """What a host reads of a submission's artifacts."""
    store = stores.open_store(stores.place(settings))
    digests = [str(job.artifact) for job in farm.jobs(submission_id)]
    found = [(store.path(digest) / "content.json").read_text() for digest in digests]
    store.release()
    return found
