"""``farm pause``, ``resume``, ``drain`` and ``undrain``: what they print and where it shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from farm import cli, db, testing
from farm.cli import drain
from farm.lifecycle import leases, reaping
from farm.models import jobs
from tests import farm_driver
from tests.integration.farm.test_commands import Run, document


@pytest.fixture
def farm(farm_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in ``farm_home`` as ann; returns exit code, stdout and stderr."""
    monkeypatch.setenv("FARM_OWNER", "ann")

    def run(*words: object) -> tuple[int, str, str]:
        code = cli.main(["--home", str(farm_home), *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def sweep(farm: Run, model: Path, driver: farm_driver.Driver) -> str:
    """A submission that waits for the scheduler."""
    return f"s{document(farm('submit', '--model', model, '--cores', '8', '--json'))['submission']}"


def test_a_pause_says_what_it_does_and_shows_everywhere(farm: Run, sweep: str, driver: farm_driver.Driver) -> None:
    driver.admit()
    code, _, err = farm("pause", sweep)
    assert (code, err) == (0, f"{sweep} is paused; nothing runs. `farm resume {sweep}` lets it go on.\n")
    assert "paused by ann" in farm("list")[1]
    assert "ready, held" in farm("list", sweep)[1]
    assert "by ann since 2" in farm("show", sweep)[1]
    assert f"{sweep} by ann since 2" in farm("status")[1]
    assert f"{sweep} has been paused by ann for " in farm("why", "j1")[1]
    assert document(farm("why", "j1", "--json"))["state"] == "ready"
    assert document(farm("status", "--json"))["paused"][0]["by"] == "ann"
    assert document(farm("pause", sweep, "--json")) == [
        {"submission": 1, "already": True, "running": [], "given_back": []}
    ]
    assert document(farm("resume", sweep, "--json")) == [{"submission": 1, "was_paused": True}]
    assert farm("resume", sweep)[2] == f"{sweep} was not paused.\n"
    assert "paused" not in farm("list")[1]


def test_pauses_are_all_or_none(farm: Run, sweep: str) -> None:
    code, _, err = farm("pause", sweep, "s99")
    assert (code, "no submission s99" in err) == (3, True)
    assert "paused" not in farm("list")[1]
    assert farm("pause", "j1")[0] == 2
    farm("cancel", sweep)
    assert farm("pause", sweep)[0] == 4


def test_a_drain_says_what_it_does_and_shows_everywhere(farm: Run, driver: farm_driver.Driver) -> None:
    code, _, err = farm("drain", "ultra/0", "--reason", "new firmware")
    assert (code, err) == (0, "ultra/0 gets no new work; nothing runs.\n")
    assert "drained by ann since 2" in farm("devices")[1]
    assert "new firmware" in farm("devices")[1]
    assert document(farm("devices", "--json"))[0]["drained"]["reason"] == "new firmware"
    assert "ultra/0 simulated 16 of 16 free (drained)" in farm("status")[1]
    assert document(farm("undrain", "ultra/0", "--json")) == [{"name": "ultra/0", "was_drained": True, "released": 0}]
    assert farm("undrain", "ultra/0")[2] == "ultra/0 was not drained.\n"
    found = document(farm("drain", "h1", "--now", "--json"))
    assert found == [{"name": "h1", "already": False, "running": [], "given_back": [], "interrupted": []}]
    assert "host drained by ann" in farm("devices")[1]


def ends_when_looked_at(monkeypatch: pytest.MonkeyPatch, *acts: Callable[[], object]) -> None:
    """Let something happen in each pause between two looks."""
    rest = iter(acts)
    monkeypatch.setattr(drain, "_pause", lambda: next(rest)())


def test_a_drain_waits_until_nothing_runs_there(
    farm: Run, model: Path, driver: farm_driver.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm("submit", "--model", model, "--cores", "8")
    driver.admit()
    first = driver.claim(1, 0)
    ends_when_looked_at(monkeypatch, lambda: None, lambda: driver.succeed(first))
    code, _, err = farm("drain", "h1", "--wait")
    assert code == 0
    assert err.splitlines() == ["h1 gets no new work; j1 goes on.", "h1: j1 there.", "h1: nothing runs any more."]
    assert document(farm("drain", "h1", "--wait", "--json"))[0]["left"] == []


def test_a_drain_waits_for_cores_of_a_lost_attempt(
    farm: Run, driver: farm_driver.Driver, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = testing.add_host(database, name="rack", cores=(16,))
    testing.add_submission(database, testing.small_plan(cores=(8,)))
    with database.write() as connection:
        connection.execute(sa.update(jobs).where(jobs.c.stage == "run").values(remaining=0))
    testing.admit_all(database)
    with database.read() as connection:
        run = connection.execute(sa.select(jobs.c.id).where(jobs.c.state == "ready", jobs.c.num_cores > 0)).scalar_one()
    claimed = testing.claim(database, run, node_id=host.device_nodes[0])
    with database.write() as connection:
        reaping.lose(connection, run, claimed.attempt, reason="silent", term=None)

    def confirm() -> None:
        with database.write() as connection:
            leases.confirm_gone(connection, host_id=host.host_id, job_id=run, attempt=claimed.attempt)

    ends_when_looked_at(monkeypatch, confirm)
    code, _, err = farm("drain", "rack/ultra/0", "--wait")
    assert (code, f"j{run} there" in err, "nothing runs any more" in err) == (0, True, True)


def test_a_drain_waits_no_longer_than_it_is_told_to(farm: Run, model: Path, driver: farm_driver.Driver) -> None:
    farm("submit", "--model", model, "--cores", "8")
    driver.admit()
    driver.claim(1, 0)
    code, out, _ = farm("drain", "h1", "--wait", "--timeout", "0.001s", "--json")
    assert (code, json.loads(out)[0]["left"]) == (1, [1])
    assert "h1: j1 still there." in farm("drain", "h1", "--wait", "--timeout", "0.001s")[2]
    assert farm("drain", "h1", "--timeout", "1s")[0] == 2


def test_why_says_who_drained_what_a_job_waits_for(farm: Run, model: Path, driver: farm_driver.Driver) -> None:
    farm("submit", "--model", model, "--cores", "8")
    driver.admit()
    farm("drain", "h1", "--reason", "move")
    assert "drained by ann: move" in farm("why", "j1")[1]


def test_an_unknown_place_is_named_with_those_that_exist(farm: Run, driver: farm_driver.Driver) -> None:
    code, _, err = farm("drain", "ultra/7")
    assert code == 3
    assert "There is no device and no host 'ultra/7', expected one of: h1, ultra/0, standard/1." in err


def test_devices_of_one_name_need_their_host(farm: Run, driver: farm_driver.Driver, database: db.Database) -> None:
    from farm import testing

    testing.add_host(database, name="rack", cores=(16,))
    code, _, err = farm("drain", "ultra/0")
    assert (code, "expected one of: h1/ultra/0, rack/ultra/0" in err) == (2, True)
    assert json.loads(farm("drain", "rack/ultra/0", "--json")[1])[0]["name"] == "rack/ultra/0"


@pytest.mark.parametrize(("text", "name"), [("ULTRA/0", "ultra/0"), ("1", "standard/1"), ("H1", "h1")])
def test_a_name_may_be_shortened_where_it_can_mean_one_thing(
    farm: Run, driver: farm_driver.Driver, text: str, name: str
) -> None:
    assert document(farm("drain", text, "--json"))[0]["name"] == name
