"""Code that changes on disk while a farm runs: what a stage made with other code is not taken for the old code's."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import sqlalchemy as sa

from farm.models import actions, hosts
from farm.states import JobState
from qeff_engine import toolchain
from tests import small_sweep
from tests.integration.attempt_node import AttemptNode, attempt_node
from workers import node as nodes
from workers.canary import Canary
from workers.discovery import HostFacts
from workers.forks import STAGE_PROCESS, ForkServer
from workers.installed import Installed

PRELOAD = (*STAGE_PROCESS, "tests.small_stages")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AttemptNode]:
    with attempt_node(tmp_path) as found:
        yield found


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "toy"
    package.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for name in ("__init__", "early", "late"):
        (package / f"{name}.py").write_text("VALUE = 'old'\n")
    return package


def remembered(node: AttemptNode) -> int:
    with node.database.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(actions)) or 0


@pytest.mark.parametrize(
    ("versions", "count"), [({"engine": "2"}, 0), ({"torch": "2"}, 1), ({"engine": "absent", "gguf": "absent"}, 1)]
)
@pytest.mark.parametrize(("source", "state"), [("nothing", JobState.SUCCEEDED), ("raise=invalid", JobState.FAILED)])
def test_what_ran_with_other_versions_than_its_key_names_is_not_kept_under_that_key(
    node: AttemptNode, versions: Mapping[str, str], count: int, source: str, state: JobState
) -> None:
    # The keys of this node name no version at all: "absent".
    forks = ForkServer(preload=PRELOAD, code=Installed(toolchain=lambda: versions))
    node.workplace = dataclasses.replace(node.workplace, forks=forks)
    job_id = node.submit(small_sweep.plan(source, cores=(8,)))[0]
    assert node.run(job_id).state is state
    forks.close()
    assert remembered(node) == count


def test_a_stage_that_imports_new_code_beside_old_publishes_nothing_and_runs_again(
    node: AttemptNode, toy: Path
) -> None:
    forks = ForkServer(preload=(*PRELOAD, "toy.early"), code=Installed(("toy",)))
    node.workplace = dataclasses.replace(node.workplace, forks=forks)
    flag = toy / "flag"
    job_id = node.submit(small_sweep.plan(f"import=toy.late:{flag}", cores=(8,)))[0]
    with node.running(job_id, until=flag):
        (toy / "late.py").write_text("VALUE = 'newer'\n")
        flag.unlink()
    forks.close()
    assert node.job(job_id).state is JobState.READY
    (attempt,) = node.attempts(job_id)
    assert attempt.failure_class == "infrastructure"
    assert "installed code was changed while the stage ran, and toy.late may come from the new" in (
        attempt.message or ""
    )
    assert node.leftovers() == []


def test_late_imports_of_code_that_did_not_change_are_no_fault(node: AttemptNode, toy: Path) -> None:
    forks = ForkServer(preload=(*PRELOAD, "toy.early"), code=Installed(("toy",)))
    node.workplace = dataclasses.replace(node.workplace, forks=forks)
    job_id = node.submit(small_sweep.plan(f"import=toy.late:{node.workplace.scratch.parent / 'flag'}", cores=(8,)))[0]
    with node.running(job_id, until=node.workplace.scratch.parent / "flag"):
        (node.workplace.scratch.parent / "flag").unlink()
    forks.close()
    assert node.job(job_id).state is JobState.SUCCEEDED


def test_a_node_reports_new_versions_and_ends_when_its_own_code_has_changed_and_it_is_idle(
    node: AttemptNode, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_OWN_PACKAGES", ("toy",))
    monkeypatch.setattr(nodes, "_BEATS_OF_A_LOOK", 1)
    facts = HostFacts(num_cpus=1, ram_bytes=1, num_slots=1, toolchain={"engine": "old"})
    running = nodes._Node(node.settings, queue=node.host.host_queue, sdk=None, facts=facts)
    running._host_id, running._node_id = node.host.host_id, node.host.host_node
    canary = Canary(patience_s=60)
    assert running._beat(node.workplace, canary) == ""
    with node.database.read() as connection:
        reported = connection.scalar(sa.select(hosts.c.toolchain).where(hosts.c.id == node.host.host_id))
    assert reported == toolchain.versions(None)
    (toy / "early.py").write_text("VALUE = 'newer'\n")
    with node.workplace.busy:
        assert running._beat(node.workplace, canary) == ""
    assert running._beat(node.workplace, canary) == "the code of the farm itself has changed"
    running._database.dispose()


def test_the_engines_version_changes_with_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tmp_path / "engine"
    (engine / "stages").mkdir(parents=True)
    (engine / "stages" / "run.py").write_text("1")
    monkeypatch.setattr(toolchain, "_ENGINE", engine)
    before = toolchain.engine_digest()
    (engine / "stages" / "run.pyc").write_text("compiled")
    os.utime(engine / "stages" / "run.py", (0, 0))
    assert toolchain.engine_digest() == before
    (engine / "stages" / "run.py").write_text("2")
    assert toolchain.engine_digest() != before
    assert toolchain.versions(None)["engine"].endswith(toolchain.engine_digest())
