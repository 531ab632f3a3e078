"""Artifacts as people name them: by their digest, or by the job or submission that has them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from farm.cli import _ids
from farm.errors import NotFound

if TYPE_CHECKING:
    import sqlalchemy as sa


def add_targets(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that :func:`named` reads."""
    parser.add_argument(
        "targets", nargs="+", metavar="TARGET", help="the first digits of a digest, j34 (a job) or s12 (a submission)"
    )


def named(connection: sa.Connection, words: Iterable[str]) -> list[str]:
    """The digests of all artifacts that some words name.

    Raises:
        Usage: one can be understood in two ways, or in none.
        NotFound: one names nothing, or a job without a result.
    """
    from farm.store import catalogue

    found: set[str] = set()
    for word in words:
        if catalogue.is_digest(word):
            found.add(catalogue.artifact(connection, word).digest)
            continue
        kind, number = _ids.either(connection, word)
        if kind == _ids.JOB:
            digests = catalogue.results_of(connection, job_id=number)
        else:
            digests = catalogue.results_of(connection, submission_id=number)
        if not digests:
            raise NotFound(f"{kind}{number} has no artifact yet. `farm show {kind}{number}` tells how far it is.")
        found.update(digests)
    return sorted(found)
