"""Commands about what is known already, and about why something failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farm import cli, records
from tests import farm_driver

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def farm(farm_home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in the home; returns exit code and standard output."""

    def run(*words: object) -> tuple[int, str]:
        code = cli.main(["--home", str(farm_home), *map(str, words)])
        return code, capsys.readouterr().out

    return run


def document(outcome: tuple[int, str]) -> Any:
    return json.loads(outcome[1])


def test_a_sweep_is_measured_or_done_anew_when_that_is_wanted(
    farm: Run, model: Path, driver: farm_driver.Driver
) -> None:
    sweep = ("submit", "--model", model, "--cores", "8", "--json")
    ran: list[str] = []

    def finish(claim: records.Claim) -> None:
        ran.append(claim.stage)
        driver.succeed(claim)

    farm(*sweep)
    driver.work(finish)
    for option, expected in (
        ((), []),
        (("--fresh-runs",), ["run"]),
        (("--no-cache",), ["resolve", "export", "compile", "run"]),
    ):
        ran.clear()
        planned = document(farm(*sweep, *option))["jobs"]
        driver.work(finish)
        assert ran == expected
        assert [stage for stage, fates in planned.items() if fates["new"]] == expected
    last = document(farm("list", "--jobs", "--stage", "run", "--json"))["rows"][0]
    assert document(farm("why", f"j{last['id']}", "--json"))["miss"] == {
        "reason": "Its user wants it done anew, whatever is known.",
        "nearest": None,
        "differences": [],
    }


def test_why_names_what_differs_from_work_done_before(farm: Run, model: Path, driver: farm_driver.Driver) -> None:
    farm("submit", "--model", model, "--cores", "8")
    driver.work()
    farm("submit", "--model", model, "--cores", "14")
    driver.work()
    compiles = document(farm("list", "--jobs", "--stage", "compile", "--json"))["rows"]
    found = document(farm("why", f"j{compiles[0]['id']}", "--json"))["miss"]
    assert found["nearest"] == compiles[1]["id"]
    assert found["differences"] == [{"part": "spec.num_cores", "before": 8, "after": 14}]
    assert "spec.num_cores 8 -> 14" in farm("why", f"j{compiles[0]['id']}")[1]


def test_failures_are_listed_with_their_line_and_what_to_do(farm: Run, model: Path, driver: farm_driver.Driver) -> None:
    farm("submit", "--model", model, "--cores", "8")
    driver.work(lambda claim: driver.fail(claim, failure_class="unsupported", message="no such layer\nmore"))
    (row,) = document(farm("list", "--failed", "--json"))["rows"]
    assert (row["failure_class"], row["failure_line"]) == ("unsupported", "no such layer")
    listed = farm("list", "--failed")[1]
    assert "no such layer" in listed
    assert row["failure_advice"] in listed
    assert row["failure_advice"] in farm("show", f"j{row['id']}")[1]
    assert row["failure_advice"] in farm("why", f"j{row['id']}")[1]
    assert document(farm("retry", f"j{row['id']}", "--no-cache", "--json"))["jobs"] == [row["id"]]
    driver.work()
    assert document(farm("list", "--failed", "--json"))["rows"] == []
