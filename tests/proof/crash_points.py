"""Every moment at which the client of an operation may end: tried, one after another.

Whatever was not committed has not happened; what was committed is kept; and from every state that is left so a farm
that starts again ends everything, and runs nothing again that was done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections.abc import Callable, Mapping

from farm import models
from tests.proof import snapshot
from tests.proof.crashing import AFTER_COMMIT, BEFORE_STATEMENT, Crashed, CrashingDatabase, ends_at
from tests.proof.site import Site
from tests.proof.situations import Act
from tests.proof.snapshot import Snapshot
from tests.proof.world import World


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """An operation without a crash.

    Attributes:
        moments: at which it could have ended, in order.
        states: what the database held: to begin with, and after each commit.
    """

    moments: tuple[str, ...]
    states: tuple[Snapshot, ...]

    def transitions(self) -> set[tuple[str, str, str]]:
        """What jobs have gone through."""
        events = self.states[-1][models.events][len(self.states[0][models.events]) :]
        return {(event.from_state, event.transition, event.to_state) for event in events if event.from_state}

    def state_at(self, moment: int) -> Snapshot:
        """What the database must hold when the client ended at that moment."""
        return self.states[self.moments[: moment + 1].count(AFTER_COMMIT)]


class Starts(enum.Enum):
    """From which of the states that are left a farm starts again."""

    NONE = 0
    LAST = 1
    ALL = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thorough:
    """How much of what may happen is tried.

    Attributes:
        every: of the moments before statements one in so many; those around commits are all tried.
        starts: new starts of a farm.
    """

    every: int
    starts: Starts


EVERYTHING = Thorough(every=1, starts=Starts.ALL)


@dataclasses.dataclass
class Tally:
    """What was tried.

    Attributes:
        num_moments: at which a client ended.
        num_starts: of a farm, from what was left.
        transitions: that the operations themselves took.
    """

    num_moments: int = 0
    num_starts: int = 0
    transitions: set[tuple[str, str, str]] = dataclasses.field(default_factory=set)


def crash_all(
    site: Site,
    operations: Mapping[str, Callable[[World], Act]],
    *,
    thorough: Thorough,
    attempt: Callable[[str], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
) -> Tally:
    """Let the clients of operations end, each at every moment, see :func:`crash_everywhere`; what was tried.

    Args:
        site: where.
        operations: by name.
        thorough: how much is tried.
        attempt: surrounds each operation, whose name it gets.
    """
    tally = Tally()
    for number, (name, operation) in enumerate(operations.items()):
        with attempt(name):
            crash_everywhere(site, operation, thorough=thorough, first=number % thorough.every, tally=tally)
    return tally


def crash_everywhere(
    site: Site, operation: Callable[[World], Act], *, thorough: Thorough, first: int, tally: Tally
) -> None:
    """Let the client of an operation end at each moment, and a farm start again from what is left.

    Args:
        site: where.
        operation: prepares what is done.
        thorough: how much is tried.
        first: of the moments that are counted off; other operations have another one.
        tally: is told what was.
    """
    world = World(site.database, clock=site.clock, shelf=site.shelf)
    act = operation(world)
    began = site.clock.now
    whole = rehearse(world, act)
    before = whole.states[0]
    tally.transitions |= whole.transitions()
    found = whole.states[-1]
    for moment, kind in enumerate(whole.moments):
        if kind == BEFORE_STATEMENT and moment % thorough.every != first:
            continue
        if found != before:
            _restore(world, before)
        else:
            snapshot.count_ids_from(site.database, before)
        assert _crashes(act, CrashingDatabase(site.database, end=ends_at(moment))), (moment, kind)
        found, expected = snapshot.take(site.database), whole.state_at(moment)
        assert found == expected, (moment, kind, found.differences(expected))
        tally.num_moments += 1
    last = len(whole.states)
    for state in whole.states[{Starts.NONE: last, Starts.LAST: last - 1, Starts.ALL: 0}[thorough.starts] :]:
        _restore(world, state)
        site.clock.now = began
        world.settle()
        tally.num_starts += 1


def _restore(world: World, state: Snapshot) -> None:
    """Put the rows back as they were, and the bytes that they tell of."""
    snapshot.restore(world.database, state)
    world.shelf.put(row.digest for row in state[models.artifacts] if row.deleted_at is None)


def _crashes(act: Act, database: CrashingDatabase) -> bool:
    try:
        act(database)
    except Crashed:
        return True
    return False


def rehearse(world: World, act: Act) -> Rehearsal:
    """Do what was prepared in full, after the rows were put back as they are: ids are counted from there."""
    world.check()
    snapshot.restore(world.database, world.rows)
    states = [world.rows]

    def note(_: int, kind: str) -> None:
        if kind == AFTER_COMMIT:
            states.append(snapshot.take(world.database))

    database = CrashingDatabase(world.database, end=note)
    act(database)
    assert len(states) > 1, "an operation that commits nothing proves nothing"
    return Rehearsal(moments=tuple(database.moments), states=tuple(states))
