"""What users write to a farm's database, see :mod:`tests.proof.situations`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from farm.lifecycle import jobs, steering
from qeff_engine.errors import FailureClass
from tests.proof.situations import Act, begun, first_job, ready_job, submit_sweep, writing
from tests.proof.sweeps import plan
from tests.proof.world import World


def submit(world: World) -> Act:
    named: dict[str, Any] = {"name": "n", "owner": "ada", "request": {}, "token": "t", "labels": {"a": "b"}}
    return writing(jobs.submit, plan(cores=(8, 14), tag="a"), **named)


def cancel_a_waiting_job(world: World) -> Act:
    submit_sweep(world, cores=(8, 14))
    return writing(jobs.cancel, first_job(world, "waiting"))


def cancel_a_queued_job_that_others_follow(world: World) -> Act:
    submit_sweep(world)
    submit_sweep(world, owner="bob")
    world.place(world.schedulers[0])
    return writing(jobs.cancel, first_job(world, "queued"))


def cancel_a_queued_job(world: World) -> Act:
    submit_sweep(world)
    world.place(world.schedulers[0])
    return writing(jobs.cancel, first_job(world, "queued"))


def cancel_a_ready_job(world: World) -> Act:
    return writing(jobs.cancel, ready_job(world, followed=False))


def cancel_a_ready_job_that_others_follow(world: World) -> Act:
    return writing(jobs.cancel, ready_job(world, followed=True))


def want_a_ready_job_after_all(world: World) -> Act:
    job_id = ready_job(world, followed=True)
    world.write(jobs.cancel, job_id)
    return writing(jobs.retry, job_id)


def want_a_queued_job_after_all(world: World) -> Act:
    cancel_a_queued_job_that_others_follow(world)(world.database)
    return writing(jobs.retry, first_job(world, "queued"))


def want_a_running_job_after_all(world: World) -> Act:
    cancel_a_running_job(world)(world.database)
    return writing(jobs.retry, first_job(world, "running"))


def cancel_a_running_job(world: World) -> Act:
    return writing(jobs.cancel, begun(world, rounds=1)[0].claim.job_id)


def cancel_a_submission(world: World) -> Act:
    begun(world, rounds=1, cores=(8, 14))
    return writing(jobs.cancel_submission, 1)


def retry_a_failed_job(world: World) -> Act:
    world.fail(begun(world, rounds=1)[0], FailureClass.UNSUPPORTED)
    return writing(jobs.retry, first_job(world, "failed"))


def retry_a_blocked_job(world: World) -> Act:
    world.fail(begun(world, rounds=1)[0], FailureClass.UNSUPPORTED)
    return writing(jobs.retry, first_job(world, "blocked"))


def retry_a_cancelled_job(world: World) -> Act:
    submit_sweep(world, cores=(8, 14))
    world.write(jobs.cancel, first_job(world, "waiting"))
    return writing(jobs.retry, first_job(world, "cancelled"))


def pause_what_is_queued(world: World) -> Act:
    submit_sweep(world)
    world.place(world.schedulers[0])
    return writing(steering.pause, 1, by="ada")


def resume(world: World) -> Act:
    begun(world, rounds=1)
    world.write(steering.pause, 1, by="ada")
    return writing(steering.resume, 1)


def drain_what_is_queued(world: World) -> Act:
    submit_sweep(world)
    world.place(world.schedulers[0])
    place = next(place for place in world.places if place.host_id == world.nodes[0].host_id)
    return writing(steering.drain, place, by="ada", reason="why")


def undrain(world: World) -> Act:
    world.write(steering.drain, world.places[0], by="ada", reason="why")
    return writing(steering.undrain, world.places[0])


def hand_back(world: World) -> Act:
    begun(world, rounds=1)
    return writing(steering.hand_back, world.places[0], reason="why")


OPERATIONS: Mapping[str, Callable[[World], Act]] = {
    one.__name__: one
    for one in (
        submit,
        cancel_a_waiting_job,
        cancel_a_queued_job_that_others_follow,
        cancel_a_queued_job,
        cancel_a_ready_job,
        cancel_a_ready_job_that_others_follow,
        want_a_ready_job_after_all,
        want_a_queued_job_after_all,
        want_a_running_job_after_all,
        cancel_a_running_job,
        cancel_a_submission,
        retry_a_failed_job,
        retry_a_blocked_job,
        retry_a_cancelled_job,
        pause_what_is_queued,
        resume,
        drain_what_is_queued,
        undrain,
        hand_back,
    )
}
