"""Attempts from claim to settlement: real processes, a real database, no broker."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from farm.fleet import devices
from farm.lifecycle import jobs, reaping
from farm.states import JobState
from farm.store.artifacts import Store
from farm.views import queries
from tests import small_sweep
from tests.integration.attempt_node import AttemptNode, alive, attempt_node, cut_off, run_attempt, run_job, wait_until
from workers import recovery
from workers.groups import AttemptRecord, Group


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AttemptNode]:
    with attempt_node(tmp_path) as found:
        yield found


def resolve_job(node: AttemptNode, source: str) -> int:
    return node.submit(small_sweep.plan(source, cores=(8,)))[0]


def test_a_chain_of_stages_reads_what_the_one_before_published(node: AttemptNode) -> None:
    run = run_job(node, "nothing")
    assert node.run(run).state is JobState.SUCCEEDED
    digest = node.job(run).artifact
    assert digest is not None
    content = json.loads((Store(node.settings.store).path(digest) / "content.json").read_text())
    assert sorted(content["inputs"]) == ["original", "program", "snapshot"]
    assert json.loads(content["inputs"]["program"])["stage"] == "compile"
    (attempt,) = node.attempts(run)
    assert attempt.device is not None
    figures = node.figures(run)
    assert (figures["answer"], figures["qids"]) == (42, [0])
    assert node.held() == (0, 0)
    assert node.leftovers() == []


def test_a_stage_has_a_session_a_directory_and_an_environment_of_its_own(tmp_path: Path) -> None:
    said = tmp_path / "said.json"
    with attempt_node(tmp_path, run_limits_s={"resolve": 100.0}) as node:
        assert node.run(resolve_job(node, f"environment={said}")).state is JobState.SUCCEEDED
    facts = json.loads(said.read_text())
    assert facts["leader"]
    assert facts["cwd"].startswith(str(node.workplace.scratch))
    assert facts["tmp"].startswith(str(node.workplace.scratch))
    assert facts["stdin"] == ""
    assert "FARM_SECRET" not in facts["environ"]
    assert "FARM_" not in facts["initial_environ"]
    assert facts["environ"]["TMPDIR"].startswith(str(node.workplace.scratch))
    assert facts["environ"]["LANG"] == "C.UTF-8"
    assert len(facts["descriptors"]) == 3 + 2  # and its pipe to the node, and what tells it that the node is gone
    assert (facts["umask"], facts["nice"], facts["oom_score"]) == (0o022, os.nice(0) + 5, 500)
    limits = facts["limits"]
    assert limits["RLIMIT_CORE"] == 0
    assert limits["RLIMIT_CPU"] == 100 * (os.cpu_count() or 1) + 60
    assert limits["RLIMIT_NOFILE"] == min(1 << 16, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    for name in ("RLIMIT_AS", "RLIMIT_DATA"):
        assert limits[name] == resource.getrlimit(getattr(resource, name))[0]  # mapped weights would count
    assert not Path(facts["environ"]["TMPDIR"]).exists()


def test_a_tool_that_prints_for_ever_neither_fills_the_disk_nor_keeps_its_node_from_renewing(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with attempt_node(tmp_path, log_limit_bytes=10_000) as node:
        job_id = resolve_job(node, f"flood={flag}")
        with node.running(job_id, until=flag), node.database.write() as connection:
            jobs.cancel(connection, job_id)
        assert node.job(job_id).state is JobState.CANCELLED
        log = node.log(job_id)
    assert log.startswith(f"begins flood={flag}\nflood 0\nflood 1\n")
    assert "the log of an attempt is limited to 10000 bytes; of what follows only the end will be kept" in log
    assert "bytes are left out here" in log
    assert len(log) < 10_000 + (1 << 16) + 300


def test_a_killed_stage_leaves_nothing_in_its_temporary_directory(node: AttemptNode) -> None:
    node.run(resolve_job(node, "litter;signal=9"))
    assert node.leftovers() == []


def test_what_a_stage_prints_is_in_its_log_and_what_it_uses_in_its_attempt(node: AttemptNode) -> None:
    job_id = resolve_job(node, "print=hello")
    node.run(job_id)
    assert "begins print=hello\nhello\nto stderr\n" in node.log(job_id)
    (attempt,) = node.attempts(job_id)
    assert (attempt.exit_code, attempt.state) == (0, "succeeded")
    assert attempt.cpu_s is not None
    assert attempt.cpu_s > 0
    assert attempt.peak_rss_bytes is not None
    assert attempt.peak_rss_bytes > 1 << 20


@pytest.mark.parametrize(
    ("source", "state", "failure_class", "words"),
    [
        ("raise=invalid", JobState.FAILED, "invalid_input", "the value is 3, expected 4"),
        ("raise=bug", JobState.FAILED, "bug", "ZeroDivisionError: division by zero"),
        ("raise=memory", JobState.READY, "out_of_memory_host", "no more"),
        ("raise=disk", JobState.READY, "infrastructure", "No space left on device. Free space there"),
        ("link=/etc/passwd", JobState.READY, "infrastructure", "'bad' is a symbolic link"),
        ("signal=11", JobState.FAILED, "bug", "crashed with SIGSEGV"),
        ("signal=9", JobState.READY, "worker_lost", "killed with SIGKILL"),
        ("exit=3", JobState.FAILED, "bug", "exit code 3 without a word"),
    ],
)
def test_a_failure_has_its_class_and_leaves_nothing(
    node: AttemptNode, source: str, state: JobState, failure_class: str, words: str
) -> None:
    job_id = resolve_job(node, source)
    assert node.run(job_id).state is state
    (attempt,) = node.attempts(job_id)
    assert (attempt.state, attempt.failure_class) == ("failed", failure_class)
    assert words in (attempt.message or "")
    assert node.held() == (0, 0)
    assert node.leftovers() == []


def test_a_bug_leaves_its_traceback_and_a_crash_its_stack_in_the_log(node: AttemptNode) -> None:
    bug, crash = resolve_job(node, "raise=bug"), resolve_job(node, "signal=11")
    node.run(bug)
    node.run(crash)
    assert "Traceback" in node.log(bug)
    assert "in _raise" in node.log(bug)
    assert "Fatal Python error: Segmentation fault" in node.log(crash)


def test_a_late_or_second_message_does_nothing(node: AttemptNode) -> None:
    job_id = resolve_job(node, "nothing")
    node.run(job_id)
    for attempt in (1, 2):
        run_attempt(node.workplace, job_id, attempt)
    assert len(node.attempts(job_id)) == 1
    assert node.job(job_id).state is JobState.SUCCEEDED


def test_a_job_that_finds_its_cores_taken_goes_back(node: AttemptNode, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    first = run_job(node, f"wait={flag}")
    (*before, second) = node.submit(small_sweep.plan("other", cores=(14,)))
    node.run_all(before)
    with node.running(first, until=flag):
        assert node.run(second).state is JobState.READY
        assert "8 cores free, 14 are needed" in node.job(second).reason
        flag.unlink()
    assert node.run(second).state is JobState.SUCCEEDED


@pytest.mark.parametrize("kind", ["tool", "deaf;tool"])
def test_cancelling_ends_the_whole_process_group(node: AttemptNode, tmp_path: Path, kind: str) -> None:
    pids_file = tmp_path / "pids"
    job_id = run_job(node, f"{kind}={pids_file}")
    with node.running(job_id, until=pids_file) as said:
        pids = [int(word) for word in said.split()]
        assert alive(*pids) == pids
        with node.database.write() as connection:
            jobs.cancel(connection, job_id)
    assert node.job(job_id).state is JobState.CANCELLED
    assert alive(*pids) == []
    assert node.held() == (0, 0)
    assert node.leftovers() == []


def test_a_node_that_shuts_down_interrupts_and_nothing_counts_against_the_job(
    node: AttemptNode, tmp_path: Path
) -> None:
    pids_file = tmp_path / "pids"
    job_id = run_job(node, f"tool={pids_file}")
    with node.running(job_id, until=pids_file) as said:
        node.workplace.stopping.set()
    assert node.job(job_id).state is JobState.READY
    assert [attempt.state for attempt in node.attempts(job_id)] == ["interrupted"]
    assert node.job(job_id).failures == 0
    assert alive(*map(int, said.split())) == []
    assert node.held() == (0, 0)


def test_a_lost_lease_ends_the_stage_and_frees_the_draining_cores(node: AttemptNode, tmp_path: Path) -> None:
    pids_file = tmp_path / "pids"
    job_id = run_job(node, f"tool={pids_file}")
    with node.running(job_id, until=pids_file) as said, node.database.write() as connection:
        reaping.lose(connection, job_id, 1, reason="test", term=None)
    assert alive(*map(int, said.split())) == []
    assert node.held() == (0, 0)
    assert [attempt.state for attempt in node.attempts(job_id)] == ["lost"]


def test_an_attempt_whose_time_is_over_is_ended_and_is_a_timeout(tmp_path: Path) -> None:
    with attempt_node(tmp_path, run_limits_s={"run": 0.5}) as node:
        pids_file = tmp_path / "pids"
        job_id = run_job(node, f"tool={pids_file}")
        with node.running(job_id, until=pids_file) as said:
            pass
        assert alive(*map(int, said.split())) == []
        (attempt,) = node.attempts(job_id)
        assert (attempt.state, attempt.failure_class) == ("failed", "timeout")
        assert attempt.message == "It ran longer than its running limit of 0.5s."
        assert node.job(job_id).state is JobState.READY
        assert node.held() == (0, 0)


def test_a_damaged_input_is_made_again_and_its_reader_goes_on(node: AttemptNode) -> None:
    resolve, export, *_ = node.submit(small_sweep.plan("model", cores=(8,)))
    node.run(resolve)
    node.admit()
    digest = node.job(resolve).artifact
    assert digest is not None
    victim = Store(node.settings.store).path(digest) / "content.json"
    victim.chmod(0o600)
    victim.write_text("spoilt")
    assert node.run(export).state is JobState.WAITING
    (attempt,) = node.attempts(export)
    assert attempt.failure_class == "infrastructure"
    assert "'content.json', which was changed" in (attempt.message or "")
    node.admit()
    with node.database.read() as connection:
        (again,) = [job.id for job in queries.job_list(connection, states=["ready"])]
    node.run_all([again, export])
    assert node.job(again).artifact == digest


def test_a_new_node_ends_what_its_predecessor_left_and_gives_it_back(node: AttemptNode, tmp_path: Path) -> None:
    successor = node.workplace
    predecessor = cut_off(node)
    pids_file = tmp_path / "pids"
    job_id = run_job(node, f"tool={pids_file}")
    with node.running(job_id, until=pids_file) as said:
        predecessor.away = True  # what a dead node writes
        (record,) = AttemptRecord.read_all(node.workplace.records)
        pids = [int(word) for word in said.split()]
        assert record.group.pid == pids[0]
        with node.database.write() as connection:
            new_id = devices.register_node(
                connection,
                host_id=node.host.host_id,
                device_id=node.host.device_ids[0],
                kind="device",
                queue=node.host.device_queues[0],
                pid=2,
            )
        recovery.take_over(dataclasses.replace(successor, node_id=new_id))
        assert alive(*pids) == []
        predecessor.away = False
    assert node.job(job_id).state is JobState.READY
    assert [attempt.state for attempt in node.attempts(job_id)] == ["lost"]
    assert node.held() == (0, 0)
    assert node.leftovers() == []


def test_a_group_is_not_mistaken_for_a_later_process_with_its_number() -> None:
    mine = Group.of(os.getpid())
    assert psutil.Process() in mine.members()
    former = dataclasses.replace(mine, birth="at another time")
    assert former.members() == []
    assert former.kill()  # a mistake would end this very process


def test_heartbeats_tell_how_far_the_stage_is(node: AttemptNode, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    job_id = resolve_job(node, f"wait={flag}")
    with node.running(job_id, until=flag):
        wait_until(lambda: node.attempts(job_id)[0].progress is not None, what="progress")
        (attempt,) = node.attempts(job_id)
        flag.unlink()
    assert (attempt.progress, attempt.fraction) == (f"begins wait={flag}", 0.5)
