"""Situations in which much is to be written, and how it is written then.

An operation prepares a :class:`~tests.proof.world.World` and returns what is to be done then, on whatever database it
is given: the same rows to begin with give the same rows at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from farm.db import Database
from farm.lifecycle import steering
from farm.models import jobs as job_rows
from farm.scheduling import rounds
from tests.proof.processes import Broker, Stage
from tests.proof.sweeps import NARROW
from tests.proof.world import World

Act = Callable[[Database], object]


def writing(function: Callable[..., Any], *arguments: Any, **named: Any) -> Act:
    """A call in a transaction of its own."""

    def act(database: Database) -> object:
        with database.write() as connection:
            return function(connection, *arguments, **named)

    return act


def submit_sweep(
    world: World, *, tag: str = "a", cores: tuple[int, ...] = (8,), owner: str = "ada", shape: str = NARROW
) -> int:
    return world.submit(tag=tag, cores=cores, priority=1, owner=owner, shape=shape)


def begun(
    world: World, *, rounds: int, cores: tuple[int, ...] = (8,), followed: bool = True, shape: str = NARROW
) -> list[Stage]:
    """A sweep whose stages of one round work, and another user's who waits for the same; the stages."""
    submit_sweep(world, cores=cores, shape=shape)
    for _ in range(rounds):
        world.begin_work(world.schedulers[0])
        world.end_work()
    world.begin_work(world.schedulers[0])
    if followed:
        submit_sweep(world, cores=cores, owner="bob", shape=shape)
        world.begin_work(world.schedulers[0])
    found = [stage for stage in world.stages.values() if stage.is_alive]
    assert found
    return found


def first_job(world: World, state: str) -> int:
    """The first job in a state."""
    world.check()
    return next(row.id for row in world.rows[job_rows] if row.state == state)


def round_of_leader(world: World) -> Act:
    """A round of the scheduler that leads."""
    one = world.schedulers[0]
    world.check()
    world.lead(one)
    named = {"settings": world.settings, "term": one.term}
    return lambda database: rounds.tick(database, sender=Broker(), **named)


def ready_job(world: World, *, followed: bool) -> int:
    """A job that nobody has room for, and that others may wait for."""
    for place in world.places:
        world.write(steering.drain, place, by="ada", reason="test")
    submit_sweep(world)
    if followed:
        submit_sweep(world, owner="bob")
    world.place(world.schedulers[0])
    return first_job(world, "ready")
