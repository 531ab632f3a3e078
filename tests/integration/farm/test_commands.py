"""The commands on a real database: what they print, for people and for programs, and how they end."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from farm import cli, db
from farm.cli import _wait
from farm.models import history
from farm.states import JobState
from qeff_engine import spec
from tests import farm_driver
from tests.farm_home import write_checkpoint

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def farm(farm_home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in ``farm_home``; returns exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        code = cli.main(["--home", str(farm_home), *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def document(outcome: tuple[int, str, str]) -> Any:
    """The one JSON document that a command printed."""
    return json.loads(outcome[1])


def test_the_plan_and_what_was_submitted_say_that_code_of_the_model_runs(farm: Run) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    words = ("submit", "--model", "org/name", "--trust-remote-code", commit)
    assert document(farm(*words, "--dry-run", "--json"))["runs_code"] == {"org/name": commit}
    code, out, _ = farm(*words)
    assert code == 0
    assert f"The stages of org/name run code that comes with it: {commit}" in out
    assert f"runs code   of org/name, {commit}" in farm("show", "s1")[1]
    jobs = {job["stage"]: job["id"] for job in document(farm("list", "s1", "--json"))["rows"]}
    told = {stage: commit in farm("show", f"j{job}")[1].partition("artifact")[0] for stage, job in jobs.items()}
    assert told == {"resolve": True, "export": True, "compile": False, "run": True}


def test_submit_prints_the_plan_and_returns(farm: Run, model: Path, driver: farm_driver.Driver) -> None:
    code, out, err = farm("submit", "--model", model, "--cores", "8,14,16")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["s1:", "3", "points,", "8", "jobs"],
        ["stage", "jobs", "new"],
        ["resolve", "1", "1"],
        ["export", "1", "1"],
        ["compile", "3", "3"],
        ["run", "3", "3"],
    ]
    assert "farm up" in err  # nobody schedules
    driver.work()
    _, out, _ = farm("submit", "--model", model, "--cores", "8,14", "--precision", "fp16,mxfp6")
    assert ["compile", "4", "2", "2"] in [line.split() for line in out.splitlines()]


def test_a_dry_run_writes_nothing(farm: Run, model: Path, database: db.Database) -> None:
    found = document(farm("submit", "--model", model, "--cores", "8,14", "--dry-run", "--json"))
    assert (found["submission"], found["points"], found["jobs"]["run"]["new"]) == (None, 2, 2)
    assert farm_driver.count(database, JobState.WAITING) == 0


@pytest.mark.usefixtures("driver")
def test_what_a_submission_needs_of_its_places_is_kept_and_shown(farm: Run, model: Path) -> None:
    assert farm("label", "ultra/0", "lab-a", "fast")[1] == "fast lab-a\n"
    assert farm("label", "ultra/0", "fast", "--remove")[1] == "lab-a\n"
    assert document(farm("label", "ultra/0", "--json")) == {"name": "ultra/0", "labels": ["lab-a"]}
    needed = ("--exclusive", "--device-label", "lab-a", "--sku", "ultra", "--host", "h1", "--kind", "interactive")
    assert farm("submit", "--model", model, "--cores", "8", *needed)[0] == 0
    jobs = {job["stage"]: job for job in document(farm("list", "--jobs", "--json"))["rows"]}
    assert (jobs["run"]["needs"], jobs["run"]["exclusive"]) == (
        {"sku": "ultra", "labels": ["lab-a"], "host": "h1"},
        True,
    )
    assert (jobs["compile"]["needs"], jobs["compile"]["exclusive"]) == ({"host": "h1"}, False)
    assert {job["kind"] for job in jobs.values()} == {"interactive"}
    shown = farm("show", f"j{jobs['run']['id']}")[1]
    assert re.search(r"wants +8 cores of 1 device: sku ultra, labels lab-a, host h1, alone\n", shown)
    found = document(farm("submit", "--model", model, "--cores", "8", "--dry-run", "--json"))
    assert (found["jobs"]["compile"]["shared"], found["jobs"]["run"]["new"]) == (1, 1)


def test_what_describes_a_submission_is_kept(farm: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("One.\n\nTwo.\n")
    farm(
        *("submit", "--model", model, "--name", "night", "--owner", "ann", "--priority", "-3", "--label", "team=perf"),
        *("--label", "gate=yes", "--prompt", "Zero.", "--prompts-file", tmp_path / "prompts.txt", "--kv", "mxint8"),
    )
    found = document(farm("show", "s1", "--json"))["submission"]
    assert (found["name"], found["owner"], found["priority"]) == ("night", "ann", -3)
    assert found["labels"] == {"team": "perf", "gate": "yes"}
    assert (found["request"]["prompts"], found["request"]["kv"]) == (["Zero.", "One.", "Two."], ["mxint8"])


def test_the_same_token_submits_once(farm: Run, model: Path) -> None:
    numbers = {document(farm("submit", "--model", model, "--token", "t1", "--json"))["submission"] for _ in range(2)}
    assert numbers == {1}


def test_a_branch_of_the_hub_is_asked_again_and_a_commit_is_not(farm: Run, driver: farm_driver.Driver) -> None:
    for revision in ("", "@main", "@" + "a" * 40):
        farm("submit", "--model", f"org/name{revision}", "--cores", "8")
    driver.work()
    again = [
        document(farm("submit", "--model", f"org/name{revision}", "--cores", "8", "--dry-run", "--json"))
        for revision in ("", "@main", "@" + "a" * 40)
    ]
    assert [found["jobs"]["resolve"]["cached"] for found in again] == [0, 0, 1]


def test_models_of_one_shape_are_told_apart(farm: Run, tmp_path: Path, driver: farm_driver.Driver) -> None:
    for seed in (0, 1):
        directory = write_checkpoint(tmp_path / f"m{seed}", seed=seed)
        for file in directory.iterdir():
            os.utime(file, (0, 0))
    farm("submit", "--model", tmp_path / "m0", "--cores", "8")
    driver.work()
    same = document(farm("submit", "--model", tmp_path / "m0", "--cores", "8", "--dry-run", "--json"))
    other = document(farm("submit", "--model", tmp_path / "m1", "--cores", "8", "--dry-run", "--json"))
    assert (same["jobs"]["resolve"]["cached"], other["jobs"]["resolve"]["cached"]) == (1, 0)


def test_waiting_prints_every_change_and_then_the_report(
    farm: Run, model: Path, driver: farm_driver.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_wait, "_pause", driver.work)
    code, out, err = farm("submit", "--model", model, "--cores", "8,14", "--wait")
    assert code == 0
    assert "j3 compile tiny-llama 8 cores fp16: running" in err
    assert "j6 run tiny-llama 14 cores fp16: succeeded" in err
    assert re.search(r"^cores +simulated device +TTFT", out, re.MULTILINE)
    assert "112.0" in out
    assert re.search(r"^ +14 .* fresh +decode$", out, re.MULTILINE)


def test_waiting_for_a_failure_ends_with_one(
    farm: Run, model: Path, driver: farm_driver.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        driver.work(lambda claim: driver.fail(claim, failure_class="unsupported", message="No such layer."))

    monkeypatch.setattr(_wait, "_pause", work)
    code, out, _ = farm("submit", "--model", model, "--cores", "8,14", "--wait")
    assert code == 1
    assert "not done: 1 unsupported" in out
    assert "j1 resolve tiny-llama: unsupported: No such layer." in out


def test_an_interrupt_stops_the_waiting_and_not_the_jobs(
    farm: Run, model: Path, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_wait, "_pause", interrupt)
    for words in (("submit", "--model", model, "--cores", "8", "--wait"), ("report", "s1", "--wait")):
        code, _, err = farm(*words)
        assert code == 130
        assert "Stopped waiting; s1 goes on. `farm report s1 --wait` waits again" in err
    assert farm_driver.count(database, JobState.WAITING) == 4


def test_a_report_is_a_table_json_or_csv(farm: Run, model: Path, driver: farm_driver.Driver) -> None:
    farm("submit", "--model", model, "--cores", "8,14")
    driver.work()
    code, out, _ = farm("report", "1")
    assert code == 0
    assert "predicted by a cost model" in out
    found = document(farm("report", "s1", "--json"))
    assert (found["state"], [row["cores"] for row in found["rows"]], found["failures"]) == ("succeeded", [8, 14], [])
    rows = list(csv.DictReader(io.StringIO(farm("report", "s1", "--csv")[1])))
    assert [row["decode_tok_s"] for row in rows] == ["64.0", "112.0"]


def test_flags_of_the_compiler_are_seen_from_plan_to_report(farm: Run, model: Path, driver: farm_driver.Driver) -> None:
    flags = ("--cores", "1,4", "--mos", "1,2", "--ols", "2", "--compiler-flag", "-new=1", "--skip-illegal")
    code, out, _ = farm("submit", "--model", model, *flags)
    assert code == 0
    assert out.startswith("s1: 3 points, 8 jobs\n")
    assert "Left out: 1 point. mos is 2 with 1 cores, expected at most the number of cores." in out
    (left,) = document(farm("submit", "--model", model, *flags, "--dry-run", "--json"))["left_out"]
    assert (left["axes"]["cores"], left["axes"]["mos"]) == (1, 2)
    driver.work()
    shown = farm("show", "s1")[1]
    assert re.search(r"3 points: .*ols 2\n", shown)
    assert re.search(r"point +cores +mos +resolve", shown)
    labels = [job["label"] for job in document(farm("list", "s1", "--json"))["rows"]]
    assert "compile tiny-llama 4 cores fp16 mos 2 ols 2 -new=1" in labels
    table = farm("report", "s1")[1].splitlines()
    assert table[0].endswith("prefill 32, ols 2")
    assert table[1].split()[:2] == ["cores", "mos"]
    rows = document(farm("report", "s1", "--json"))["rows"]
    assert [(row["cores"], row["mos"], row["ols"]) for row in rows] == [(1, 1, 2), (4, 1, 2), (4, 2, 2)]
    lines = list(csv.DictReader(io.StringIO(farm("report", "s1", "--csv")[1])))
    assert [line["mos"] for line in lines] == ["1", "1", "2"]


def test_lists_page_and_filter(farm: Run, model: Path, driver: farm_driver.Driver) -> None:
    for owner in ("ann", "bob", "ann"):
        farm("submit", "--model", model, "--cores", "8", "--owner", owner)
    first = document(farm("list", "--limit", 2, "--json"))
    rest = document(farm("list", "--before", first["next"], "--json"))
    assert [row["id"] for row in (*first["rows"], *rest["rows"])] == [3, 2, 1]
    assert (first["next"], rest["next"]) == (2, None)
    assert [row["owner"] for row in document(farm("list", "--owner", "bob", "--json"))["rows"]] == ["bob"]
    assert "--before 2" in farm("list", "--limit", 2)[2]
    driver.work()
    jobs = document(farm("list", "s3", "--json"))["rows"]
    assert [(job["id"], job["stage"], job["state"]) for job in jobs] == [
        (12, "run", "cached"),
        (11, "compile", "cached"),
        (10, "export", "cached"),
        (9, "resolve", "cached"),
    ]
    exports = document(farm("list", "--stage", "export", "--state", "succeeded", "--json"))["rows"]
    assert [job["id"] for job in exports] == [2]


def test_show_explains_a_job(farm: Run, model: Path, driver: farm_driver.Driver) -> None:
    farm("submit", "--model", model, "--cores", "8")
    driver.work()
    code, out, _ = farm("show", "j4")
    assert code == 0
    for words in ("8 cores of 1 device", "program of j3", "decode_tok_s", "h1 ultra/0", "waiting -> ready", "1.5 s"):
        assert words in out, out
    found = document(farm("show", "j4", "--json"))
    assert found["inputs"] == {"original": 1, "program": 3, "snapshot": 1}
    assert found["attempts"][0]["state"] == "succeeded"
    assert found["events"][-1]["to_state"] == "succeeded"


def test_cancel_and_retry(farm: Run, model: Path, database: db.Database) -> None:
    farm("submit", "--model", model, "--cores", "8")
    assert document(farm("cancel", "s1", "--json")) == [
        {"submission": 1, "jobs": {"cancelled": 4, "stopping": 0, "ended": 0}}
    ]
    assert farm_driver.count(database, JobState.CANCELLED) == 4
    assert document(farm("retry", "s1", "--json")) == {"jobs": [1, 2, 3, 4]}
    assert farm_driver.count(database, JobState.WAITING) == 4
    code, _, err = farm("retry", "s1")
    assert (code, "s1 has no failed or cancelled job" in err) == (4, True)


def test_cancelling_several_is_all_or_nothing(farm: Run, model: Path, database: db.Database) -> None:
    farm("submit", "--model", model, "--cores", "8")
    code, _, err = farm("cancel", "j4", "j3", "j999")
    assert (code, "There is no job j999" in err) == (3, True)
    assert farm_driver.count(database, JobState.CANCELLED) == 0


def test_logs_are_printed_and_followed_through_attempts(
    farm: Run, farm_home: Path, model: Path, driver: farm_driver.Driver
) -> None:
    from farm import wire

    farm("submit", "--model", model, "--cores", "8")
    driver.admit()

    def write(claim: farm_driver.records.Claim, text: str) -> None:
        path = farm_home / "logs" / wire.attempt_log(claim.job_id, claim.attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    first = driver.claim(1, 0)
    write(first, "\x1b[31mfirst try\x1b[0m\nno end of line")
    driver.interrupt(first)
    second = driver.claim(1, 0)
    write(second, "second try\n")
    driver.succeed(second)
    assert farm("logs", "j1") == (0, "second try\n", "")
    assert farm("logs", "1", "--attempt", 1) == (0, "first try\nno end of line", "")
    code, out, err = farm("logs", "-f", "j1")
    assert (code, out) == (0, "second try\n")
    assert err == "--- attempt 2\n--- j1 resolve tiny-llama: succeeded\n"
    code, _, err = farm("logs", "j1", "--attempt", 3)
    assert (code, "j1 has no attempt 3, expected one of 1, 2" in err) == (3, True)
    code, _, err = farm("logs", "-f", "j1", "--attempt", 9)
    assert code == 3


def test_behind_the_log_of_a_failed_job_stands_what_to_do(
    farm: Run, farm_home: Path, model: Path, driver: farm_driver.Driver
) -> None:
    from farm import wire

    farm("submit", "--model", model, "--cores", "8")
    driver.admit()
    claim = driver.claim(1, 0)
    path = farm_home / "logs" / wire.attempt_log(claim.job_id, claim.attempt)
    path.parent.mkdir(parents=True)
    path.write_text("no\n")
    driver.fail(claim, failure_class="invalid_input", message="no")
    advice = document(farm("show", "j1", "--json"))["job"]["failure_advice"]
    assert farm("logs", "j1") == (0, "no\n", f"--- what to do: {advice}\n")
    code, _, err = farm("logs", "-f", "j1")
    assert (code, err.splitlines()[-1]) == (1, f"--- what to do: {advice}")
    for command in (("show", "j1"), ("why", "j1"), ("list", "--failed")):
        assert advice in farm(*command)[1], command


def test_following_a_running_job_prints_what_is_written_meanwhile(
    farm: Run, farm_home: Path, model: Path, driver: farm_driver.Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from farm import wire
    from farm.cli import logs

    farm("submit", "--model", model, "--cores", "8")
    driver.admit()
    claims = [driver.claim(1, 0)]
    path = farm_home / "logs" / wire.attempt_log(1, 1)
    path.parent.mkdir(parents=True)
    path.write_text("beginning\nhalf a ")
    steps = iter(
        [
            lambda: path.write_text("beginning\nhalf a line\n"),
            lambda: driver.interrupt(claims[0]),
            lambda: claims.append(driver.claim(1, 0)),
            lambda: path.with_name("1.2.log").write_text("again\n"),
            lambda: driver.succeed(claims[1]),
        ]
    )
    monkeypatch.setattr(logs, "_pause", lambda: next(steps)())
    code, out, err = farm("logs", "-f", "j1")
    assert (code, out) == (0, "beginning\nhalf a line\nagain\n")
    assert err.splitlines() == ["--- attempt 1", "--- attempt 2", "--- j1 resolve tiny-llama: succeeded"]


def test_why_and_devices_name_the_holder(farm: Run, model: Path, driver: farm_driver.Driver) -> None:
    farm("submit", "--model", model, "--cores", "8")
    driver.work(lambda claim: None if claim.stage == "run" else driver.succeed(claim))
    code, out, _ = farm("devices")
    assert code == 0
    assert [line.split() for line in out.splitlines()][1:] == [
        ["ultra/0", "h1", "simulated", "16", "8", "ready", "j4", "(8)"],
        ["standard/1", "h1", "simulated", "14", "14", "ready"],
    ]
    assert [device["free"] for device in document(farm("devices", "--json"))] == [8, 14]
    assert "Attempt 1 has run on h1 ultra/0" in farm("why", "j4")[1]
    assert document(farm("why", "j4", "--json"))["state"] == "running"


def test_commands_say_when_a_submission_is_expected_to_be_done(
    farm: Run, model: Path, driver: farm_driver.Driver, database: db.Database
) -> None:
    farm("submit", "--model", model, "--cores", "8")
    for command, where in ((("list",), "unknown"), (("show", "s1"), r"expected +unknown"), (("status",), "s1 unknown")):
        assert re.search(where, farm(*command)[1]), command
    assert document(farm("list", "--json"))["rows"][0]["expected_at"] is None
    with database.write() as connection:
        rows = [{"key": stage, "samples": [[150.0, 0]], "updated_at": 1.0} for stage in spec.Stage]
        connection.execute(sa.insert(history), rows)
        now = db.now(connection)
    at = document(farm("list", "--json"))["rows"][0]["expected_at"]
    assert at == pytest.approx(now + 600.0, abs=60.0)
    assert document(farm("show", "s1", "--json"))["submission"]["expected_at"] == pytest.approx(at, abs=60.0)
    assert [row["submission"] for row in document(farm("status", "--json"))["expected"]] == [1]
    for command in (("list",), ("show", "s1"), ("status",)):
        assert re.search(r"\bin (10|9)m", farm(*command)[1]), command
    driver.work()
    assert document(farm("list", "--json"))["rows"][0]["expected_at"] is None
    assert document(farm("status", "--json"))["expected"] == []
    assert "unknown" not in farm("list")[1]


def test_status_says_that_nobody_schedules(farm: Run, model: Path, driver: farm_driver.Driver) -> None:
    farm("submit", "--model", model, "--cores", "8")
    code, out, _ = farm("status")
    assert code == 1
    assert "does not work; `farm up` starts it" in out
    assert "4 waiting" in out
    found = document(farm("status", "--json"))
    assert (found["scheduler"], found["unfinished"], len(found["nodes"])) == (False, {"waiting": 4}, 3)


def test_doctor_looks_at_this_host_and_only_warns_of_what_others_may_do(
    farm: Run, farm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sdk" / "tools").mkdir(parents=True)
    monkeypatch.setenv("QAIC_SDK_ROOT", str(tmp_path / "sdk"))
    found = {check["name"]: check for check in document(farm("doctor", "--json"))}
    levels = {name: found[name]["level"] for name in ("SDK", "versions", "compiler", "runtime", "devices")}
    assert levels == {"SDK": "ok", "versions": "warn", "compiler": "warn", "runtime": "warn", "devices": "warn"}
    assert found["compiler"]["ok"]
    assert "Install the Apps SDK" in found["compiler"]["cure"]
    # Without one that is named, an embedded farm has its own.
    monkeypatch.delenv("QAIC_SDK_ROOT")
    (farm_home / "sdk" / "exec").mkdir(parents=True)
    found = {check["name"]: check for check in document(farm("doctor", "--json"))}
    assert (found["SDK"]["found"], found["compiler"]["level"]) == (str(farm_home / "sdk"), "warn")


def test_doctor_names_the_cure_of_what_is_wrong(farm: Run) -> None:
    code, out, _ = farm("doctor")
    assert code == 1
    assert "broker: Start the farm with `farm up`" in out
    found = {check["name"]: check["ok"] for check in document(farm("doctor", "--json"))}
    assert {name: found[name] for name in ("home", "database", "broker", "nodes", "disk")} == {
        "home": True,
        "database": True,
        "broker": False,
        "nodes": False,
        "disk": True,
    }
