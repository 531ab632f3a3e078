"""The pages about states and tables are what the code says."""

from __future__ import annotations

import pytest

from farm import diagrams
from farm.states import TRANSITIONS


@pytest.mark.parametrize("name", diagrams.PAGES)
def test_a_page_is_up_to_date(name: str) -> None:
    written = (diagrams.DOCS / name).read_text(encoding="utf-8")
    assert written == diagrams.PAGES[name](), f"docs/{name} is not what the code says. Write it anew with: make docs"


def test_every_transition_is_taken_by_somebody_and_explained_where_its_name_is_not_enough() -> None:
    rows = [line.split(" | ") for line in diagrams.states_page().splitlines() if line.startswith("| ")]
    found = {(row[0][2:], row[1][1:-1], row[2]): row[4] for row in rows if len(row) == 5 and row[1].startswith("`")}
    assert set(found) == {(str(source), name, str(target)) for source, name, target in TRANSITIONS}
    assert all(doers.startswith("`farm.") for doers in found.values()), found


@pytest.mark.parametrize(
    ("way", "doers"),
    [
        ("waiting | `fail` | failed", ["admission.admit", "settling.failed"]),
        ("waiting | `cancel` | cancelled", ["jobs._cancel_at_once"]),
        ("queued | `cancel` | cancelled", ["following.leave", "jobs._cancel_at_once"]),
        (
            "running | `cancel` | cancelled",
            ["attempts._move_cancelled_successes", "attempts.cancel_attempt", "attempts.fail", "reaping._take"],
        ),
        ("running | `rebuild` | waiting", ["rebuilding.rebuild_input"]),
    ],
)
def test_a_way_between_states_is_told_of_who_takes_it_and_of_nobody_else(way: str, doers: list[str]) -> None:
    line = next(line for line in diagrams.states_page().splitlines() if line.startswith(f"| {way}"))
    assert line.split(" | ")[-1] == ", ".join(f"`farm.lifecycle.{name}`" for name in doers) + " |"


def test_every_table_has_its_section_and_a_column_the_meaning_of_its_comment() -> None:
    page = diagrams.schema_page()
    assert all(f"\n## {table.name}\n" in page for table in diagrams.metadata.sorted_tables)
    assert "| `remaining` | integer |  | `0` | inputs not done |" in page
    assert "unique index: `action_key` where `state IN (" in page
