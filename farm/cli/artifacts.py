"""``farm artifacts``: what the store holds, or one artifact with the jobs that made and use it."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from farm.cli import _parser, _words
from farm.cli._context import Context

if TYPE_CHECKING:
    from farm.store import catalogue

DESCRIPTION = "List artifacts, last used first, or show one with the jobs that made it and that use it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("digest", nargs="?", metavar="DIGEST", help="the first digits of one, to show it")
    parser.add_argument("--stage", metavar="STAGE", help="those that a stage made")
    parser.add_argument("--deleted", action="store_true", help="also those whose bytes the collection has deleted")
    parser.add_argument("--limit", type=_parser.whole_number, default=50, metavar="N", help="how many (50)")
    parser.add_argument("--json", action="store_true", help="one JSON document: {rows} or {artifact, made_by, used_by}")


def run(options: argparse.Namespace, context: Context) -> int:
    """Print a list, or one."""
    return _show(options, context) if options.digest else _list(options, context)


def _list(options: argparse.Namespace, context: Context) -> int:
    from farm import db
    from farm.store import catalogue

    with context.reading() as connection:
        rows = catalogue.artifact_list(connection, stage=options.stage, deleted=options.deleted, limit=options.limit)
        totals = catalogue.totals(connection)
        at = db.now(connection)
    if options.json:
        context.out.json({"rows": [_to_json(row) for row in rows]})
        return 0
    headers = ("digest", "stage", "size", "files", "jobs", "age", "unused for", "state")
    cells = [
        (
            row.digest[:12],
            row.stage,
            _words.size(row.num_bytes),
            str(row.num_files),
            str(row.num_jobs),
            _words.duration(max(0.0, at - row.created_at)),
            _words.duration(max(0.0, at - row.used_at)),
            row.state if row.pinned is None else f"pinned: {row.pinned}",
        )
        for row in rows
    ]
    context.out.table(headers, cells, right=("size", "files", "jobs"))
    shown = "" if len(rows) == totals.num_artifacts else f"{len(rows)} of "
    context.out.talk(
        f"{shown}{_words.plural(totals.num_artifacts, 'artifact')}, {_words.size(totals.num_bytes)} when what they "
        "share counts for each."
    )
    return 0


def _show(options: argparse.Namespace, context: Context) -> int:
    from farm.store import catalogue

    with context.reading() as connection:
        found = catalogue.artifact(connection, options.digest)
        made_by = catalogue.makers(connection, found.digest)
        used_by = catalogue.users(connection, found.digest)
    if options.json:
        context.out.json({"artifact": _to_json(found), "made_by": made_by, "used_by": used_by})
        return 0
    for name, value in (
        ("artifact", found.digest),
        ("stage", found.stage),
        ("state", found.state if found.pinned is None else f"pinned: {found.pinned}"),
        ("size", f"{_words.size(found.num_bytes)} in {_words.plural(found.num_files, 'file')}"),
        ("made", _words.moment(found.created_at)),
        ("used", _words.moment(found.used_at)),
        ("deleted", _words.moment(found.deleted_at)),
        ("made by", ", ".join(f"j{number}" for number in made_by)),
        ("used by", ", ".join(f"j{number}" for number in used_by)),
    ):
        if value:
            context.out.text(f"{name:<8}  {value}")
    return 0


def _to_json(row: catalogue.Artifact) -> dict[str, object]:
    return {**dataclasses.asdict(row), "state": row.state}
