"""``farm artifacts``, ``pin``, ``unpin`` and ``gc`` on a real database."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from farm import cli, db
from farm.models import artifacts
from tests import farm_driver

Farm = Callable[..., tuple[int, str, str]]


@pytest.fixture
def farm(farm_home: Path, capsys: pytest.CaptureFixture[str]) -> Farm:
    """Run a command in ``farm_home``; returns exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        code = cli.main(["--home", str(farm_home), *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def rows(farm: Farm, model: Path, driver: farm_driver.Driver) -> list[dict[str, Any]]:
    """The artifacts of a submission that has ended, as the command prints them."""
    farm("submit", "--model", model, "--cores", "8,14")
    driver.work()
    return list(json.loads(farm("artifacts", "--json")[1])["rows"])


def age(database: db.Database, days: float) -> None:
    with database.write() as connection:
        connection.execute(
            sa.update(artifacts).values(
                created_at=artifacts.c.created_at - days * 86_400,
                used_at=artifacts.c.used_at - days * 86_400,
                condemned_at=artifacts.c.condemned_at - days * 86_400,
            )
        )


def test_artifacts_lists_them_and_shows_one(farm: Farm, rows: list[dict[str, Any]]) -> None:
    assert sorted(row["stage"] for row in rows) == ["compile", "compile", "export", "resolve", "run", "run"]
    code, out, err = farm("artifacts", "--stage", "compile", "--limit", 1)
    assert code == 0
    assert out.splitlines()[0].split()[:3] == ["digest", "stage", "size"]
    assert out.splitlines()[1].split()[1:5] == ["compile", "10", "B", "1"]
    assert "1 of 6 artifacts, 60 B" in err
    export = next(row for row in rows if row["stage"] == "export")
    shown = json.loads(farm("artifacts", export["digest"][:8], "--json")[1])
    assert (shown["artifact"], shown["made_by"]) == (export, [2])
    assert len(shown["used_by"]) == 2
    assert f"artifact  {export['digest']}" in farm("artifacts", export["digest"])[1]


@pytest.mark.parametrize(
    ("digest", "code", "words"),
    [("000000000000", 3, "There is no artifact"), ("xyz", 2, "is no digest"), ("abc", 2, "at least 6")],
)
def test_digests_that_name_nothing_are_told(farm: Farm, digest: str, code: int, words: str) -> None:
    found, _, err = farm("artifacts", digest)
    assert found == code
    assert words in err


def test_pins_keep_what_gc_would_delete(farm: Farm, rows: list[dict[str, Any]], database: db.Database) -> None:
    by_stage = {row["stage"]: row["digest"] for row in rows}
    assert json.loads(farm("pin", "j1", by_stage["export"][:10], "--reason", "baseline", "--json")[1]) == {
        "pinned": sorted([by_stage["resolve"], by_stage["export"]])
    }
    assert "pinned: baseline" in farm("artifacts", "--stage", "export")[1]
    age(database, days=40)
    told = json.loads(farm("gc", "--older-than", "30d", "--now", "--dry-run", "--json")[1])
    done = json.loads(farm("gc", "--older-than", "30d", "--now", "--json")[1])
    assert told["condemned"] == done["condemned"]
    assert len(done["condemned"]) == 4
    kept = json.loads(farm("artifacts", "--json")[1])["rows"]
    assert {row["state"] for row in kept} == {"pinned"}
    assert {row["state"] for row in json.loads(farm("artifacts", "--deleted", "--json")[1])["rows"]} == {
        "pinned",
        "deleted",
    }
    code, _, err = farm("pin", "s1")
    assert (code, "has been deleted" in err) == (4, True)
    assert "2 artifacts unpinned" in farm("unpin", "s1")[2]


def test_gc_chooses_first_and_deletes_later_and_says_so(
    farm: Farm, rows: list[dict[str, Any]], database: db.Database
) -> None:
    age(database, days=40)
    code, out, err = farm("gc", "--older-than", "30d")
    assert (code, out.splitlines()[1:]) == (0, [f"{len(rows)} artifacts chosen, 0 B"])
    assert "10 minutes later, or with --now" in err
    assert {row["state"] for row in json.loads(farm("artifacts", "--json")[1])["rows"]} == {"condemned"}
    age(database, days=1)
    farm("gc")
    assert json.loads(farm("artifacts", "--json")[1])["rows"] == []


def test_gc_deletes_what_no_job_knows_and_old_logs(farm: Farm, rows: list[dict[str, Any]], farm_home: Path) -> None:
    draft = farm_home / "store" / "tmp" / "9.1-abc"
    log = farm_home / "logs" / "jobs" / "000" / "1.1.log"
    for folder in (draft, log.parent):
        folder.mkdir(parents=True)
    log.write_text("12345")
    for path in (draft, log):
        os.utime(path, (1.0, 1.0))
    code, out, err = farm("gc", "--logs-older-than", "90d")
    assert (code, out.splitlines()[1:]) == (0, ["1 leftover deleted, 0 B", "1 log deleted, 5 B"])
    assert "No artifact was looked at for its age" in err
    assert (draft.exists(), log.exists(), len(rows)) == (False, False, 6)


@pytest.mark.parametrize("words", [["--budget", "much"], ["--older-than", "30x"], ["--budget", "5PB"]])
def test_sizes_and_durations_that_are_none_are_refused(farm: Farm, words: list[str]) -> None:
    code, _, err = farm("gc", *words)
    assert code == 2
    assert f"'{words[1]}' is not a" in err


def test_fsck_tells_what_is_wrong_and_repairs_it(farm: Farm, rows: list[dict[str, Any]]) -> None:
    code, out, err = farm("fsck")  # the rows have no bytes
    assert code == 1
    assert {tuple(line.split()[:2]) for line in out.splitlines()} == {("found", "lost")}
    assert f"{len(rows)} findings: {len(rows)} found" in err
    found = json.loads(farm("fsck", "--repair", "--json")[1])
    assert {(one["kind"], one["state"]) for one in found} == {("lost", "repaired")}
    assert {one["subject"] for one in found} == {row["digest"] for row in rows}
    assert farm("fsck") == (0, "", "0 findings.\n")


def test_doctor_tells_the_state_of_the_store(
    farm: Farm, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def store() -> dict[str, Any]:
        return next(check for check in json.loads(farm("doctor", "--json")[1]) if check["name"] == "store")

    monkeypatch.setenv("FARM_STORE_BUDGET", "1KiB")
    assert store()["ok"]
    assert store()["found"].startswith(f"{len(rows)} artifacts, 60 B; budget 1.0 KiB at ")
    monkeypatch.setenv("FARM_STORE", "nowhere://bucket/farm")
    monkeypatch.setenv("FARM_STORE_OPTIONS", '{"secret": "hush-hush"}')
    assert not store()["ok"]
    assert "nowhere://bucket/farm" in store()["cure"]
    assert "hush-hush" not in json.dumps(store())
