"""Ids as people write them: ``s12`` is a submission, ``j34`` a job, a plain number whichever of them exists."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from farm.errors import NotFound, Usage

if TYPE_CHECKING:
    import sqlalchemy as sa

SUBMISSION, JOB = "s", "j"
_WORDS = {SUBMISSION: "submission", JOB: "job"}


def either(connection: sa.Connection, text: str) -> tuple[str, int]:
    """The kind (:data:`SUBMISSION` or :data:`JOB`) and number of an id that exists.

    Raises:
        Usage: it is no id, or a plain number that both a submission and a job have.
        NotFound: nothing has it.
    """
    kind, number = _parse(text)
    found = [known for known in ([kind] if kind else _WORDS) if _exists(connection, known, number)]
    if len(found) > 1:
        raise Usage(f"{number} is a submission and a job, expected s{number} or j{number}.")
    if not found:
        raise NotFound(_unknown(kind, number))
    return found[0], number


def submission(connection: sa.Connection, text: str) -> int:
    """The number of a submission that exists.

    Raises:
        Usage: it is no id of a submission.
        NotFound: there is no such submission.
    """
    return _only(connection, text, SUBMISSION)


def job(connection: sa.Connection, text: str) -> int:
    """The number of a job that exists.

    Raises:
        Usage: it is no id of a job.
        NotFound: there is no such job.
    """
    return _only(connection, text, JOB)


def _only(connection: sa.Connection, text: str, wanted: str) -> int:
    kind, number = _parse(text)
    if kind not in (None, wanted):
        raise Usage(f"'{text}' is a {_WORDS[str(kind)]}, expected a {_WORDS[wanted]} such as {wanted}12.")
    if not _exists(connection, wanted, number):
        raise NotFound(_unknown(wanted, number))
    return number


def _parse(text: str) -> tuple[str | None, int]:
    match = re.fullmatch(r"([sj]?)(\d{1,18})", text)
    if match is None:
        raise Usage(f"'{text}' is not an id, expected one such as s12 (a submission) or j34 (a job).")
    return match[1] or None, int(match[2])


def _exists(connection: sa.Connection, kind: str, number: int) -> bool:
    from farm.views import queries

    if kind == SUBMISSION:
        return queries.exists(connection, submission_id=number)
    return queries.exists(connection, job_id=number)


def _unknown(kind: str | None, number: int) -> str:
    if kind is None:
        return f"There is no submission and no job {number}. `farm list` and `farm list --jobs` show those that exist."
    listing = "farm list" if kind == SUBMISSION else "farm list --jobs"
    return f"There is no {_WORDS[kind]} {kind}{number}. `{listing}` shows those that exist."
