"""Real ends of real processes: the class, the line and the advice that are kept of them, and what the next try gets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from farm.lifecycle.failures import POLICIES
from farm.models import attempts, jobs
from qeff_engine.errors import FailureClass
from tests import small_sweep
from tests.integration.attempt_node import AttemptNode, attempt_node
from workers import evidence

GIB = 1 << 30


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AttemptNode]:
    with attempt_node(tmp_path) as found:
        yield found


def end(node: AttemptNode, source: str) -> Any:
    """The row of the attempt of a stage that ends in a way."""
    job_id = node.submit(small_sweep.plan(source, cores=(8,)))[0]
    node.run(job_id)
    with node.database.read() as connection:
        return connection.execute(sa.select(attempts).where(attempts.c.job_id == job_id)).one()


@pytest.mark.parametrize(
    ("source", "failure_class", "line"),
    [
        ("raise=invalid", "invalid_input", "the value is 3, expected 4"),
        ("raise=bug", "bug", "ZeroDivisionError: division by zero"),
        ("signal=11", "bug", "Fatal Python error: Segmentation fault"),
        ("print=step one;signal=9", "worker_lost", "to stderr"),
        ("print=terminate called after throwing std::bad_alloc;signal=6", "out_of_memory_host", "terminate called"),
        (f"allocate={1 << 40}", "out_of_memory_host", "MemoryError"),
        ("print=OSError: [Errno 28] No space left on device;exit=3", "infrastructure", "OSError: [Errno 28] No space"),
        ("print=a word;exit=3", "bug", "to stderr"),
    ],
)
def test_an_end_has_its_class_and_the_line_that_matters(
    node: AttemptNode, source: str, failure_class: str, line: str
) -> None:
    found = end(node, source)
    assert (found.failure_class, found.failure_line[: len(line)]) == (failure_class, line)
    said = "Say 4." if source == "raise=invalid" else POLICIES[FailureClass(failure_class)].advice
    assert found.failure_advice == said


def test_want_of_memory_is_tried_once_more_with_twice_the_memory(node: AttemptNode) -> None:
    found = end(node, "raise=memory")
    with node.database.read() as connection:
        job = connection.execute(sa.select(jobs).where(jobs.c.id == found.job_id)).one()
    assert job.state == "ready"
    assert job.ram_bytes == 2 * max(found.ram_bytes, found.peak_rss_bytes)
    assert node.run(job.id).state == "failed"
    with node.database.read() as connection:
        sizes = list(connection.scalars(sa.select(attempts.c.ram_bytes).order_by(attempts.c.number)))
    assert sizes == [found.ram_bytes, job.ram_bytes]


@pytest.mark.parametrize(
    ("option", "line"), [("-retained-staet", "Invalid option -retained-staet"), ("-m=/no/such/model.onnx", "")]
)
def test_the_line_of_a_compiler_that_refuses_is_found_in_what_it_really_prints(
    tmp_path: Path, option: str, line: str
) -> None:
    sdk = tmp_path / "sdk"
    install = [sys.executable, "-m", "qeff_engine.simulated_sdk", "install", str(sdk), "--devices", "ultra:1"]
    subprocess.run(install, check=True, capture_output=True)
    command = [str(sdk / "exec" / "qaic-compile"), "-aic-hw", option, f"-aic-binary-dir={tmp_path / 'qpc'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    found = evidence.decisive_line(FailureClass.COMPILER_ERROR, done.stdout + done.stderr)
    assert found
    assert line in found
