"""What commands say when the database is held by another, and when a host does not come back."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from farm import cli, db, testing
from farm.lifecycle import reaping
from tests.integration.farm.test_commands import Run, document
from tests.proof import invariants


@pytest.fixture
def farm(farm_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in ``farm_home`` as ann; returns exit code, stdout and stderr."""
    monkeypatch.setenv("FARM_OWNER", "ann")

    def run(*words: object) -> tuple[int, str, str]:
        code = cli.main(["--home", str(farm_home), *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_held_database_is_one_sentence_and_an_exit_code_of_its_own(
    farm: Run, farm_home: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "BUSY_TIMEOUT_MS", 200)
    other = sqlite3.connect(farm_home / "farm.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    submit = ("submit", "--model", model, "--cores", "8")
    try:
        code, out, err = farm(*submit)
        assert (code, out) == (5, "")
        assert err == (
            f"farm: The database of {farm_home} is busy: another process has held it for 0.2 s. "
            "Nothing was written; try again.\n"
        )
        assert farm("list")[0] == 0  # who only reads does not wait
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert farm(*submit)[0] == 0


def test_cores_of_a_host_that_never_comes_back_are_freed_on_a_users_word(farm: Run, database: db.Database) -> None:
    host = testing.add_host(database, cores=(16,))
    testing.add_submission(database, testing.small_plan(cores=(8,)))
    for node_id in [host.host_node] * 3:
        (job_id,) = testing.admit_all(database)
        testing.finish(database, testing.claim(database, job_id, node_id=node_id))
    (job_id,) = testing.admit_all(database)
    claimed = testing.claim(database, job_id, node_id=host.device_nodes[0])
    with database.write() as connection:
        reaping.lose(connection, job_id, claimed.attempt, reason="test", term=None)
    assert document(farm("devices", "--json"))[0]["free"] == 8
    assert document(farm("undrain", "ultra/0", "--json"))[0]["released"] == 0
    assert document(farm("devices", "--json"))[0]["free"] == 8
    assert "8 cores of lost attempts freed." in farm("undrain", "ultra/0", "--force")[2]
    assert document(farm("devices", "--json"))[0]["free"] == 16
    assert "ann freed 8 cores of attempt 1 without its host's word" in farm("show", f"j{job_id}")[1]
    invariants.check(database)


@pytest.mark.parametrize("option", ["--wait-limit", "--run-limit", "--deadline"])
def test_a_limit_that_is_no_duration_is_refused_before_anything_is_written(farm: Run, model: Path, option: str) -> None:
    code, _, err = farm("submit", "--model", model, option, "soon")
    assert code == 2
    assert "'soon' is not a duration, expected a number with a unit, such as 90s, 30m, 2h, 1d or 1h30m" in err
    assert document(farm("list", "--json"))["rows"] == []


def test_limits_are_shown_with_the_job(farm: Run, model: Path) -> None:
    limits = ("--wait-limit", "2h", "--run-limit", "90s", "--deadline", "1d")
    assert farm("submit", "--model", model, "--cores", "8", *limits)[0] == 0
    shown = farm("show", "j1")[1]
    assert "2h of waiting for a place, 1m30s of running, deadline 2" in shown
    assert "Its deadline is in " in farm("why", "j1")[1]
    assert "\ndeadline " in farm("show", "s1")[1]
