"""The farm under each fault that the simulated SDK can show: the right end of every job, and devices that come back.

One farm with the real engine; faults come and go in the SDK's file while it runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from farm.models import core_leases
from farm.models import devices as device_rows
from farm.states import JobState
from farm.store.artifacts import Store
from farm.views import queries
from qeff_engine.sdk import devices, location
from qeff_engine.simulated_sdk import faults
from tests.acceptance.running_farm import RunningFarm, processes_of, running_farm
from tests.acceptance.test_real_engine import submit

RUN = ("--cores", "4", "--generation-len", "4")
ULTRA, STANDARD = ("--sku", "ultra"), ("--sku", "PCIe")


class FaultyFarm:
    """A farm whose SDK the test lets fail."""

    def __init__(self, farm: RunningFarm, model: Path) -> None:
        self.farm = farm
        self.model = model
        self.sdk = farm.settings.home / "sdk"
        self._number = 0

    def have(self, *faults: dict[str, Any]) -> None:
        """Have these faults from now on; without any there are none."""
        path = self.sdk / "faults.json"
        draft = path.with_suffix(".draft")
        # Each has a name of its own in the whole test, so that all are counted anew.
        named = [{"id": f"f{self._number + index}", **fault} for index, fault in enumerate(faults)]
        self._number += len(faults)
        draft.write_text(json.dumps({"faults": named}))
        draft.replace(path)

    def have_shown(self) -> bool:
        """Whether each of the present faults has shown itself."""
        present = faults.of_file(self.sdk / "faults.json")
        with faults.locked(self.sdk) as folder:
            return all(faults.count_of(folder, fault)[1] > 0 for fault in present)

    def run(self, *options: str) -> int:
        """Submit a run of the compiled program that nobody has asked for before."""
        self._number += 1
        return submit(self.farm, self.model, *RUN, "--prompt", f"Say {self._number}", *options)

    def last(self, submission_id: int) -> queries.Job:
        """The run of a submission, at its end."""
        self.farm.wait_for_end(submission_id)
        return self.farm.jobs(submission_id)[-1]

    def figures(self, submission_id: int) -> list[dict[str, Any]]:
        """What the runs of a submission that succeeded have measured."""
        store = Store(self.farm.settings.store)
        found = [job.artifact for job in self.farm.jobs(submission_id) if job.stage == "run" and job.artifact]
        return [json.loads((store.path(digest) / "measurement.json").read_text())["metrics"] for digest in found]

    def tries(self, submission_id: int) -> list[str]:
        """How each attempt of a submission ended: its class, or its state."""
        return [attempt.failure_class or attempt.state for attempt in self.farm.attempts(submission_id)]

    def devices(self) -> dict[str, tuple[int, str, str]]:
        """By kind, number and health of each device and why, as ``farm devices`` shows them."""
        with self.farm.database.read() as connection:
            columns = (device_rows.c.sku, device_rows.c.qid, device_rows.c.health, device_rows.c.health_reason)
            return {row[0]: (row[1], row[2], row[3]) for row in connection.execute(sa.select(*columns))}

    def wait_for_device(self, sku: str, *, health: str, reason: str = "") -> None:
        """Wait until a device has a health, and a reason with these words."""

        def come() -> bool:
            _, now, why = self.devices()[sku]
            return now == health and reason in why

        self.farm.wait_until(come, what=f"{sku}: {health} {reason}; {self.devices()}")

    def wait_until_well(self) -> None:
        """Wait until all devices get work again and nothing holds a core, in the books and on the devices."""
        for sku in self.devices():
            self.wait_for_device(sku, health="ready")
        with self.farm.database.read() as connection:
            assert connection.scalar(sa.select(sa.func.count()).select_from(core_leases)) == 0
        found = devices.discover(location.find(self.sdk))
        assert [(device.nsp_free, device.ready) for device in found] == [(d.nsp_total, True) for d in found]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[FaultyFarm]:
    home = tmp_path_factory.mktemp("faults") / "home"
    pace = {"heartbeat_s": 0.3, "device_check_s": 0.3, "cool_down_s": 0.3, "quarantine_s": 0.5}
    with running_farm(home, node_module="workers", **pace) as farm:
        found = FaultyFarm(farm, model)
        assert found.last(found.run()).state is JobState.SUCCEEDED
        yield found


def test_each_way_of_a_compiler_to_fail_has_its_class_and_what_may_pass_is_tried_again(faulty: FaultyFarm) -> None:
    kinds = ("compiler-oom", "compiler-half", "compiler-crash", "compiler-truncated", "compiler-empty")
    refusal = {"kind": "compiler-error", "error": "constant", "times": 1}
    faulty.have(refusal, *({"kind": kind, "after": n, "times": 1} for n, kind in enumerate(kinds, 1)))
    cores = ",".join(str(number) for number in range(5, 11))
    submission_id = submit(faulty.farm, faulty.model, "--cores", cores, "--generation-len", "1")
    faulty.farm.wait_for_end(submission_id)
    compiled = [job for job in faulty.farm.jobs(submission_id) if job.stage == "compile"]
    (refused,) = [job for job in compiled if job.state is JobState.FAILED]
    assert refused.failure_class == "unsupported"
    assert "'limit' input must be a constant tensor" in (refused.failure_message or "")
    assert "report the operator" in (refused.failure_advice or "")
    failures = sorted(word for word in faulty.tries(submission_id) if word != "succeeded")
    assert failures == [*["compiler_crash"] * 3, "infrastructure", "out_of_memory_host", "unsupported"]
    states = faulty.farm.states(submission_id)
    assert (states[JobState.FAILED], states[JobState.BLOCKED]) == (1, 1)
    assert [run["num_generated_tokens"] for run in faulty.figures(submission_id)] == [1] * 5
    faulty.have()
    faulty.wait_until_well()


def test_a_compiler_that_hangs_and_does_not_listen_is_ended_at_its_limit(faulty: FaultyFarm) -> None:
    faulty.have({"kind": "compiler-hang", "ignore_sigterm": True})
    submission_id = submit(faulty.farm, faulty.model, "--cores", "11", "--run-limit", "2s")
    faulty.farm.wait_for_end(submission_id)
    failed = next(job for job in faulty.farm.jobs(submission_id) if job.state is JobState.FAILED)
    assert (failed.stage, failed.failure_class) == ("compile", "timeout")
    assert faulty.tries(submission_id) == ["timeout"] * 2
    assert not [line for line in processes_of(faulty.farm.settings.home) if "qaic-compile" in line]
    faulty.have()


def test_a_fault_of_a_device_costs_an_attempt_and_a_test_gives_the_device_back(faulty: FaultyFarm) -> None:
    """Jobs are bound to one device each, so that they go on only when it is well again."""
    for first, second in (
        ({"kind": "device-ssr", "after": 2}, {"kind": "device-timeout", "after": 1}),
        ({"kind": "activation-refused", "code": "mcid"}, {"kind": "activation-refused", "code": "nsp-timeout"}),
    ):
        faulty.have({**first, "device": 0, "times": 1}, {**second, "device": 1, "times": 1})
        found = [faulty.run(*ULTRA), faulty.run(*STANDARD)]
        for submission_id in found:
            assert faulty.last(submission_id).state is JobState.SUCCEEDED
            assert faulty.tries(submission_id) == ["device_lost", "succeeded"]
            assert faulty.figures(submission_id)[0]["num_generated_tokens"] == 4
        faulty.wait_until_well()


def test_memory_that_is_not_there_is_no_fault_of_the_device_and_a_slow_device_is_only_slow(faulty: FaultyFarm) -> None:
    before = faulty.last(faulty.run(*STANDARD))
    refusal = {"kind": "activation-refused", "code": "memory", "device": 0, "times": 1}
    faulty.have(refusal, {"kind": "device-slow", "device": 1, "factor": 50}, {"kind": "device-throttled", "device": 1})
    refused, slow = faulty.run(*ULTRA), faulty.run(*STANDARD)
    job = faulty.last(refused)
    assert (job.state, job.failure_class) == (JobState.FAILED, "out_of_memory_device")
    assert "mxfp6" in (job.failure_advice or "")
    assert faulty.tries(refused) == ["out_of_memory_device"]
    assert faulty.last(slow).state is JobState.SUCCEEDED
    assert pace(faulty, slow) == pytest.approx(pace(faulty, before.submission_id) / 50, rel=1e-3)
    faulty.have()
    faulty.wait_until_well()


def pace(faulty: FaultyFarm, submission_id: int) -> float:
    """Tokens per second of a submission's run."""
    return float(faulty.figures(submission_id)[0]["total_tok_s"])


def test_wrong_numbers_fail_the_run_and_the_device_rests_until_it_computes_right(faulty: FaultyFarm) -> None:
    faulty.have({"kind": "wrong-numbers", "device": 0})
    wrong, other = faulty.run(*ULTRA), faulty.run(*STANDARD)
    job = faulty.last(wrong)
    assert (job.state, job.failure_class) == (JobState.FAILED, "numerics")
    assert "standard deviations below the best" in (job.failure_message or "")
    assert faulty.tries(wrong) == ["numerics"], "nobody tries again what computes wrong"
    faulty.wait_for_device("PCIe Ultra", health="quarantined", reason="its test failed")
    assert "It computes wrong" in faulty.devices()["PCIe Ultra"][2]
    assert faulty.last(other).state is JobState.SUCCEEDED
    faulty.have()
    faulty.wait_until_well()
    assert faulty.last(faulty.run(*ULTRA)).state is JobState.SUCCEEDED


def test_a_device_that_is_ill_or_away_gets_no_work_and_the_other_goes_on_under_another_number(
    faulty: FaultyFarm,
) -> None:
    faulty.have({"kind": "device-permission", "device": 0})
    faulty.wait_for_device("PCIe Ultra", health="quarantined", reason="qaic-util says Error")
    faulty.have({"kind": "device-missing", "device": 0, "renumber": True})
    faulty.wait_for_device("PCIe Ultra", health="lost")
    going_on = faulty.run(*STANDARD)
    assert faulty.last(going_on).state is JobState.SUCCEEDED
    assert faulty.figures(going_on)[0]["qid"] == 0
    faulty.have({"kind": "device-moved", "device": 0, "qid": 1})
    faulty.wait_for_device("PCIe Ultra", health="ready")
    back = faulty.run(*ULTRA)
    assert faulty.last(back).state is JobState.SUCCEEDED
    assert faulty.figures(back)[0]["qid"] == 1
    faulty.have()
    faulty.farm.wait_until(
        lambda: (
            {sku: found[:2] for sku, found in faulty.devices().items()}
            == {"PCIe Ultra": (0, "ready"), "PCIe": (1, "ready")}
        ),
        what="both devices under their old numbers",
    )
    faulty.wait_until_well()


def test_a_device_in_error_under_a_run_costs_it_the_attempt(faulty: FaultyFarm) -> None:
    # The call waits, so that the host's look at the device comes before its end.
    faulty.have({"kind": "device-timeout", "device": 0, "times": 1, "seconds": 600})
    submission_id = faulty.run(*ULTRA)
    faulty.farm.wait_until(faulty.have_shown, what="the call that waits")
    faulty.have({"kind": "device-error", "device": 0})
    faulty.wait_for_device("PCIe Ultra", health="quarantined", reason="qaic-util says Error")
    faulty.farm.wait_until(lambda: "device_lost" in faulty.tries(submission_id), what="the end of the attempt")
    faulty.have()
    assert faulty.last(submission_id).state is JobState.SUCCEEDED
    assert faulty.tries(submission_id) == ["device_lost", "succeeded"]
    faulty.wait_until_well()
