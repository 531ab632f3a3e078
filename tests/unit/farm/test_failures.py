"""What follows from the class of a failure."""

from __future__ import annotations

import itertools

import pytest

from farm.lifecycle import failures
from farm.lifecycle.failures import POLICIES, Failure
from qeff_engine.errors import FailureClass

GIB = 1 << 30


def test_every_class_has_a_policy_and_an_advice() -> None:
    assert set(POLICIES) == set(FailureClass)
    assert all(policy.advice for policy in POLICIES.values())


def test_what_would_fail_again_is_not_tried_again() -> None:
    deterministic = {kind for kind, policy in POLICIES.items() if policy.deterministic}
    assert deterministic == {FailureClass.INVALID_INPUT, FailureClass.UNSUPPORTED, FailureClass.COMPILER_ERROR}
    assert {POLICIES[kind].retries for kind in deterministic} == {0}


@pytest.mark.parametrize("kind", [kind for kind, policy in POLICIES.items() if policy.retries])
def test_pauses_grow_by_the_factor_are_shortened_by_no_more_than_the_jitter_and_end_at_the_limit(
    kind: FailureClass,
) -> None:
    policy = POLICIES[kind]
    for same_class, job_id in itertools.product(range(8), (1, 2, 77)):
        whole_s = min(policy.longest_pause_s, policy.first_pause_s * policy.factor**same_class)
        pause_s = failures.pause_s(kind, same_class=same_class, job_id=job_id, attempt=same_class + 1)
        assert whole_s * (1 - policy.jitter) < pause_s <= whole_s
    assert failures.pause_s(kind, same_class=60, job_id=1, attempt=60) <= policy.longest_pause_s


def test_jobs_that_failed_together_do_not_come_back_together() -> None:
    def pauses() -> list[float]:
        return [
            failures.pause_s(FailureClass.INFRASTRUCTURE, same_class=0, job_id=job_id, attempt=1)
            for job_id in range(100)
        ]

    assert pauses() == pauses()  # of the job and its attempt, not of chance
    assert len(set(pauses())) == 100
    policy = POLICIES[FailureClass.INFRASTRUCTURE]
    quarters = {int(4 * (1 - pause / policy.first_pause_s) / policy.jitter) for pause in pauses()}
    assert quarters == {0, 1, 2, 3}  # spread over the whole of what jitter allows


def test_failures_count_by_class_and_all_together() -> None:
    kind = FailureClass.OUT_OF_MEMORY_HOST
    assert failures.is_tried_again(kind, same_class=0, failures=3)  # three of another class do not use up its one
    assert not failures.is_tried_again(kind, same_class=1, failures=1)
    assert not failures.is_tried_again(kind, same_class=0, failures=failures.MOST_FAILURES - 1)


def test_only_want_of_memory_makes_the_reservation_larger() -> None:
    known = {"predicted_bytes": 2 * GIB, "reserved_bytes": 3 * GIB, "peak_rss_bytes": 5 * GIB}
    found = {kind: failures.memory_bytes(kind, **known) for kind in FailureClass}
    assert found.pop(FailureClass.OUT_OF_MEMORY_HOST) == 10 * GIB
    assert set(found.values()) == {2 * GIB}


def test_a_failure_without_a_line_shows_the_first_of_its_message_and_the_advice_of_its_class() -> None:
    failure = Failure(failure_class=FailureClass.TIMEOUT, message="Ran for 5 s.\nMore.")
    assert failure.columns() == {
        "failure_class": "timeout",
        "failure_message": "Ran for 5 s.\nMore.",
        "failure_line": "Ran for 5 s.",
        "failure_advice": POLICIES[FailureClass.TIMEOUT].advice,
    }
    told = Failure(failure_class=FailureClass.TIMEOUT, message="m", line=" the line ", advice="Wait.").columns()
    assert (told["failure_line"], told["failure_advice"]) == ("the line", "Wait.")
