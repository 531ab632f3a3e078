"""Waiting for a submission: live on a terminal, one line per change of state elsewhere. Changes nothing in the farm."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from farm.cli import _words
from farm.cli._context import Context
from farm.cli._output import on_terminal
from farm.states import DONE, FINAL, JobState

if TYPE_CHECKING:
    import sqlalchemy as sa
    from rich.progress import Progress, TaskID

    from farm.views import queries

_POLL_S = 0.3
_SILENCE_S = 15.0  # without a word, after which lines say what runs
# Transitions whose reason says more than the state itself.
_TELLING = ("hit", "fail", "retry_later", "lose", "interrupt", "give_back", "block", "cancel", "unsubscribe")
NOT_WORKING = "no scheduler works in this farm at the moment. Rows are kept; work starts, or goes on, with `farm up`."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """A point in time: by the database's clock, and since the submission."""

    now: float
    elapsed_s: float


class _View(Protocol):
    def begin(self, *, num_jobs: int) -> None:
        """Say what there is."""

    def change(self, name: str, event: queries.Event, *, reason: str, elapsed_s: float) -> None:
        """Say that a job changed its state."""

    def show(self, running: Sequence[tuple[str, queries.Attempt]], *, done: int, at: Moment) -> None:
        """Say how the running jobs go on."""


def wait(context: Context, submission_id: int) -> str:
    """Wait until every job of a submission has ended and return the state of the whole.

    Raises:
        KeyboardInterrupt: the user has enough; the farm works on.
    """
    with _view(context) as view:
        return _follow(context, submission_id, view)


def detached(submission_id: int) -> str:
    """What to say when the user stops waiting."""
    return (
        f"Stopped waiting; s{submission_id} goes on. `farm report s{submission_id} --wait` waits again, "
        f"`farm show s{submission_id}` shows how far it is, `farm cancel s{submission_id}` ends it."
    )


def _follow(context: Context, submission_id: int, view: _View) -> str:
    from farm import db
    from farm.views import inventory, queries

    with context.reading() as connection:
        jobs = queries.job_list(connection, submission_id=submission_id, limit=None)
        last_event = queries.first_event(connection, submission_id)
    names = {job.id: f"j{job.id} {job.label}" for job in jobs}
    view.begin(num_jobs=len(names))
    working = True
    while True:
        with context.reading() as connection:
            now = db.now(connection)
            submission = queries.submission(connection, submission_id)
            events = queries.event_list(connection, submission_id=submission_id, after=last_event)
            running = queries.running(connection, submission_id)
            was_working, working = working, inventory.scheduler_works(connection, now=now)
            reasons = {event.id: _reason(connection, event) for event in events}
        for event in map(_as_seen, events):
            last_event = event.id
            if event.from_state not in (None, event.to_state):
                elapsed_s = event.at - submission.created_at
                view.change(names[event.job_id], event, reason=reasons[event.id], elapsed_s=elapsed_s)
        done = sum(count for state, count in submission.counts.items() if state in FINAL)
        at = Moment(now=now, elapsed_s=now - submission.created_at)
        view.show([(names[attempt.job_id], attempt) for attempt in running], done=done, at=at)
        if submission.finished_at is not None:
            return submission.state
        if was_working and not working:
            context.out.warn(NOT_WORKING)
        _pause()


def _as_seen(event: queries.Event) -> queries.Event:
    """An event as it looks to the job's submission: a job that works on for others only is cancelled."""
    if event.transition == "unsubscribe":
        return dataclasses.replace(event, to_state=str(JobState.CANCELLED))
    return event


@contextmanager
def _view(context: Context) -> Iterator[_View]:
    if not on_terminal(sys.stderr):
        yield _Lines(context)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Live(progress)


class _Lines:
    """A line per change, with the time since the submission."""

    def __init__(self, context: Context) -> None:
        self._out = context.out
        self._said_s = 0.0

    def begin(self, *, num_jobs: int) -> None:
        self._out.talk(f"Waiting for {_words.plural(num_jobs, 'job')}; Ctrl-C stops waiting, not the jobs.")

    def change(self, name: str, event: queries.Event, *, reason: str, elapsed_s: float) -> None:
        self._said_s = elapsed_s
        self._out.talk(f"{elapsed_s:8.1f} s  {name}: {event.to_state}{f' ({reason})' if reason else ''}")

    def show(self, running: Sequence[tuple[str, queries.Attempt]], *, done: int, at: Moment) -> None:
        """Say what runs when nothing was said for a while."""
        if at.elapsed_s - self._said_s < _SILENCE_S:
            return
        self._said_s = at.elapsed_s
        for name, attempt in running:
            words = f"{name}: running for {_words.duration(at.now - attempt.started_at)}"
            told = f", {attempt.progress}" if attempt.progress else ""
            self._out.talk(f"{at.elapsed_s:8.1f} s  {words}{told}")


class _Live:
    """A bar for the whole, a line for each running job; what has ended is left above them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._whole = progress.add_task("jobs", total=None)
        self._lines: dict[int, TaskID] = {}  # by job

    def begin(self, *, num_jobs: int) -> None:
        self._progress.update(self._whole, total=num_jobs)

    def change(self, name: str, event: queries.Event, *, reason: str, elapsed_s: float) -> None:
        from rich.text import Text

        if event.to_state not in FINAL:
            return
        good = event.to_state in DONE
        state = (f"{event.to_state:<9}", "green" if good else "red")
        line = Text.assemble(f"{elapsed_s:8.1f} s  ", state, f" {name}")
        if reason:
            line.append(f": {reason}")
        self._progress.console.print(line)

    def show(self, running: Sequence[tuple[str, queries.Attempt]], *, done: int, at: Moment) -> None:
        self._progress.update(self._whole, completed=done)
        for job_id in set(self._lines) - {attempt.job_id for _, attempt in running}:
            self._progress.remove_task(self._lines.pop(job_id))
        for name, attempt in running:
            if attempt.job_id not in self._lines:
                self._lines[attempt.job_id] = self._progress.add_task("", total=1.0)
            text = f"{name}, {_words.duration(at.now - attempt.started_at)} {attempt.progress or ''}"
            self._progress.update(
                self._lines[attempt.job_id], description=text.replace("[", r"\["), completed=attempt.fraction or 0.0
            )


def _reason(connection: sa.Connection, event: queries.Event) -> str:
    """Why a job changed its state, in a line; nothing where the state says it."""
    from farm.views import queries

    if event.transition not in _TELLING:
        return ""
    if event.to_state == JobState.FAILED:
        job = queries.job(connection, event.job_id)
        if job.state == JobState.FAILED:
            return f"{job.failure_class}: {job.failure_message}".partition("\n")[0]
    return event.reason.partition("\n")[0]


def _pause() -> None:
    time.sleep(_POLL_S)
