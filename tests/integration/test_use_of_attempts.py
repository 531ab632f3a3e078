"""What attempts use is measured over all their processes, and those that use too much memory are stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from farm.lifecycle import jobs
from farm.models import jobs as job_rows
from farm.states import JobState
from farm.views.queries import Attempt
from tests import small_sweep
from tests.integration.attempt_node import AttemptNode, attempt_node
from workers.groups import Group
from workers.memory import HostMemory
from workers.meter import Gauge, Meter

MIB = 1 << 20
# The kernel counts user and system time of each process in whole ticks of 10 ms: a little of what is computed is lost.
COMPUTES_S, COUNTED_S = 0.5, 0.4


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AttemptNode]:
    with attempt_node(tmp_path) as found:
        yield found


def resolve_job(node: AttemptNode, source: str, *, ram_bytes: int = 0) -> int:
    job_id = node.submit(small_sweep.plan(source, cores=(8,)))[0]
    with node.database.write() as connection:
        connection.execute(sa.update(job_rows).where(job_rows.c.id == job_id).values(ram_bytes=ram_bytes))
    return job_id


def last_attempt(node: AttemptNode, job_id: int) -> Attempt:
    return node.attempts(job_id)[-1]


def held(attempt: Attempt, words: str) -> int:
    """The number in a message."""
    before, after = map(re.escape, words.split("{}"))
    found = re.search(f"{before}([0-9]+){after}", attempt.message or "")
    assert found is not None, attempt.message
    return int(found[1])


def test_orphaned_grandchildren_count_with_what_they_computed_and_held(node: AttemptNode, tmp_path: Path) -> None:
    job_id = resolve_job(node, f"use=2:100:{COMPUTES_S}:{tmp_path / 'used'}")
    assert node.run(job_id).state is JobState.SUCCEEDED
    used = last_attempt(node, job_id)
    assert used.cpu_s is not None
    assert used.cpu_s > 2 * COUNTED_S
    assert used.peak_rss_bytes is not None
    assert used.peak_rss_bytes > 2 * 100 * MIB


def test_what_grandchildren_used_counts_also_when_they_are_killed(node: AttemptNode, tmp_path: Path) -> None:
    flag = tmp_path / "used"
    job_id = resolve_job(node, f"use=2:1:{COMPUTES_S}:{flag}:on")
    with node.running(job_id, until=flag), node.database.write() as connection:
        jobs.cancel(connection, job_id)
    assert node.job(job_id).state is JobState.CANCELLED
    assert (last_attempt(node, job_id).cpu_s or 0) > 2 * COUNTED_S


def test_a_stage_that_holds_far_more_than_was_predicted_is_killed_and_gets_more_the_next_time(
    node: AttemptNode, tmp_path: Path
) -> None:
    job_id = resolve_job(node, f"use=1:300:0:{tmp_path / 'used'}:on", ram_bytes=100 * MIB)
    assert node.run(job_id).state is JobState.READY
    killed = last_attempt(node, job_id)
    assert killed.failure_class == "out_of_memory_host"
    held_mib = held(killed, "may hold no more than 200 MiB of memory. It held {} MiB, reserved were 100 MiB.")
    with node.database.read() as connection:
        again = connection.scalar(sa.select(job_rows.c.ram_bytes).where(job_rows.c.id == job_id))
    assert again >= 2 * held_mib * MIB > 2 * 200 * MIB
    assert node.held() == (0, 0)


def test_without_a_prediction_there_is_no_limit_of_its_own(node: AttemptNode, tmp_path: Path) -> None:
    job_id = resolve_job(node, f"use=1:300:0.2:{tmp_path / 'used'}")
    assert node.run(job_id).state is JobState.SUCCEEDED


def test_when_the_host_runs_out_the_stage_above_its_reservation_is_killed(node: AttemptNode, tmp_path: Path) -> None:
    low = Meter(
        period_s=0.05,
        lock=tmp_path / "memory.lock",
        look=lambda: HostMemory(total_bytes=64 * 1024 * MIB, available_bytes=100 * MIB),
    )
    node.workplace = dataclasses.replace(node.workplace, meter=low)
    modest = resolve_job(node, f"use=1:50:0.3:{tmp_path / 'modest'}", ram_bytes=200 * MIB)
    assert node.run(modest).state is JobState.SUCCEEDED
    greedy = resolve_job(node, f"use=1:300:0:{tmp_path / 'greedy'}:on", ram_bytes=200 * MIB)
    assert node.run(greedy).state is JobState.READY
    killed = last_attempt(node, greedy)
    assert killed.failure_class == "out_of_memory_host"
    words = "the host ran out of memory: 100 MiB of 65536 MiB were left. It held {} MiB, reserved were 200 MiB."
    assert held(killed, words) > 200


def test_nodes_of_a_host_stop_one_stage_at_a_time(tmp_path: Path) -> None:
    left = HostMemory(total_bytes=1 << 36, available_bytes=0)
    first, second = (Meter(period_s=1, lock=tmp_path / "memory.lock", look=lambda: left) for _ in range(2))
    code = "held = b'x' * (64 << 20); print(); input()"
    command = [sys.executable, "-S", "-c", code]
    with contextlib.ExitStack() as stack:
        gauges = []
        for _ in range(2):
            stage = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True
            )
            stack.enter_context(stage)
            stack.callback(stage.kill)
            assert stage.stdout is not None
            stage.stdout.readline()
            gauges.append(Gauge(Group.of(stage.pid), reserved_bytes=0, limit_bytes=0))
        first.measure(gauges[:1])
        second.measure(gauges[1:])
        assert [bool(gauge.excess) for gauge in gauges] == [True, False]
        left = HostMemory(total_bytes=1 << 36, available_bytes=1 << 35)
        first.measure([])
        left = HostMemory(total_bytes=1 << 36, available_bytes=0)
        second.measure(gauges[1:])
        assert [bool(gauge.excess) for gauge in gauges] == [True, True]
        assert [gauge.group.members() for gauge in gauges] == [[], []]
