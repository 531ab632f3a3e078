"""Every wrong request gives one clear message and its exit code, no traceback, and leaves the database as it was."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from farm import cli, db, models, plan, settings
from farm.home import local
from farm.lifecycle import jobs
from farm.states import JobState
from farm.sweep import Sweep, SweepModel
from qeff_engine import spec
from tests import farm_driver
from tests.farm_home import CONFIG, safetensors, write_checkpoint


@pytest.fixture
def sources(tmp_path: Path, model: Path) -> dict[str, Path]:
    """Model sources by what is wrong with them."""
    no_config = write_checkpoint(tmp_path / "no-config")
    (no_config / "config.json").unlink()
    pickle_only = write_checkpoint(tmp_path / "pickle-only")
    (pickle_only / "model.safetensors").rename(pickle_only / "pytorch_model.bin")
    short = write_checkpoint(tmp_path / "short")
    (short / "model.safetensors").write_bytes(safetensors()[:-100])
    gguf = tmp_path / "short.gguf"
    gguf.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 5, 5) + b"\x00\x01")
    not_gguf = tmp_path / "other.gguf"
    not_gguf.write_bytes(b"something else, long enough to have a header")
    return {
        "good": model,
        "missing": tmp_path / "tiny-lama",
        "no config": no_config,
        "pickle only": pickle_only,
        "truncated safetensors": short,
        "truncated gguf": gguf,
        "not gguf": not_gguf,
        "empty prompts": _text(tmp_path / "empty.txt", "\n\n"),
        "bad jsonl": _text(tmp_path / "bad.jsonl", '"fine"\n{"prompt": 1}\n'),
    }


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def unharmed(database: db.Database) -> Iterator[None]:
    """Fails when a test leaves rows, or a damaged database."""
    tables = (models.submissions, models.jobs, models.points, models.events, models.outbox)

    def counts() -> list[int]:
        with database.read() as connection:
            return [connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() for table in tables]

    before = counts()
    yield
    assert counts() == before
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []


BAD_SUBMISSIONS = [
    (["--model", "{missing}"], r"tiny-lama does not exist, .* Did you mean 'tiny-llama'\?"),
    (["--model", "{no config}"], "has no config.json, expected a checkpoint directory"),
    (["--model", "{pickle only}"], "has weights only as pickle"),
    (["--model", "{truncated safetensors}"], "model.safetensors"),
    (["--model", "{truncated gguf}"], "short.gguf"),
    (["--model", "{not gguf}"], "other.gguf"),
    (["--model", "not a model!"], "neither a path that exists nor a hub id"),
    (["--model", "{good}@main"], "revision is 'main', but .* is on this machine"),
    (["--model", "{good}", "--model", "{good}"], "--model has .*tiny-llama twice"),
    (["--model", "{good}", "--cores", "0"], "--cores is 0, expected a whole number of at least 1"),
    (["--model", "{good}", "--cores", "8,8"], "--cores has 8 twice"),
    (["--model", "{good}", "--cores", "8", "--cores", "14,8"], "--cores has 8 twice"),
    (["--model", "{good}", "--cores", "99"], r"No device has 99 cores: ultra/0 \(16 cores\), standard/1 \(14 cores\)"),
    (["--model", "{good}", "--devices", "0"], "--devices is 0, expected a whole number of at least 1"),
    (["--model", "{good}", "--devices", "2", "--cores", "16"], r"No host has 2 devices with 16 cores: h1 has 1\."),
    (["--model", "{good}", "--sku", "pro"], r"No device has the SKU pro\. Known: standard, ultra\."),
    (["--model", "{good}", "--device-label", "lab"], r"No device has all of the labels lab\. Known: none\."),
    (["--model", "{good}", "--host", "h2"], r"There is no host 'h2', expected one of: h1\."),
    (["--model", "{good}", "--sdk", "0.9"], r"No device has the SDK 0\.9\."),
    (["--model", "{good}", "--kind", "urgent"], "invalid choice: 'urgent'"),
    (["--model", "{good}", "--ctx-len", "32", "--generation-len", "32"], "context length 32 is too small"),
    (["--model", "{good}", "--ctx-len", "32", "--prefill-len", "64"], "prefill length 64 is longer"),
    (["--model", "{good}", "--ctx-len", "1"], "ctx_len is 1, expected"),
    (["--model", "{good}", "--precision", "mxfp"], r"--precision is 'mxfp', .* Did you mean 'mxfp6'\?"),
    (["--model", "{good}", "--kv", "mxint4"], r"--kv is 'mxint4', .* Did you mean 'mxint8'\?"),
    (["--model", "{good}", "--quantize", "gptqq:4"], r"method is 'gptqq', .* Did you mean 'gptq'\?"),
    (["--model", "{good}", "--quantize", "gptq:3"], "bits is 3, expected 4"),
    (["--model", "{good}", "--mos", "0"], "mos is '0', expected whole numbers of at least 1"),
    (["--model", "{good}", "--mos", "1,01"], "--compiler-option mos has 1 twice"),
    (["--model", "{good}", "--compiler-option", "mos="], "mos is '', expected whole numbers"),
    (["--model", "{good}", "--compiler-option", "mso=1"], r"no compiler option 'mso'. Did you mean 'mos'\?"),
    (["--model", "{good}", "--compiler-option", "aic-num-cores=4"], "Use the number of cores"),
    (["--model", "{good}", "--compiler-option", "node-precision-info=/none"], "cannot be read: No such file"),
    (["--model", "{good}", "--compiler-flag", "-mos=2"], "Give it as the compiler option mos"),
    (["--model", "{good}", "--compiler-flag"], "--compiler-flag: expected one argument"),
    (
        ["--model", "{good}", "--cores", "1,4", "--mos", "1,2"],
        r"1 of 4 points cannot .* cores 1 mos 2: .*--skip-illegal",
    ),
    (["--model", "{good}", "--compiler-option", "mdts-mos=2", "--skip-illegal"], "1 of 1 points cannot be compiled"),
    (["--model", "{good}", "--task", "text"], "task is 'text', expected one of"),
    (["--model", "{good}", "--prompt", ""], "prompts is empty or holds an empty text"),
    (["--model", "{good}", "--prompts-file", "{empty prompts}"], "has no prompt, expected at least one line"),
    (["--model", "{good}", "--prompts-file", "{bad jsonl}"], "line 2 is .*, expected a JSON string"),
    (["--model", "{good}", "--prompts-file", "/nowhere.txt"], "/nowhere.txt cannot be read: No such file"),
    (["--model", "{good}", "--generation-len", "0"], "generation_len is 0, expected"),
    (["--model", "{good}", "--presicion", "fp16"], r"has no option --presicion. Did you mean --precision\?"),
]


@pytest.mark.parametrize(("words", "message"), BAD_SUBMISSIONS)
@pytest.mark.usefixtures("driver", "unharmed")
def test_a_wrong_submission_is_refused_with_two(
    words: list[str],
    message: str,
    sources: dict[str, Path],
    farm_home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--home", str(farm_home), "submit", *(word.format(**sources) for word in words)]
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("farm: ")
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err), captured.err


@pytest.fixture
def one_submission(database: db.Database, driver: farm_driver.Driver) -> None:
    """s1 with jobs j1 to j4, all done."""
    source = spec.ResolveSpec(source="/m", kind="directory", fingerprint="f")
    sweep = Sweep(models=(SweepModel(name="m", source=source),), cores=(8,))
    with database.write() as connection:
        jobs.submit(connection, plan.expand(sweep), name="n", owner="o", request={})
    driver.work()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["show", "j99"], 3, "There is no job j99. `farm list --jobs` shows those that exist."),
        (["show", "s99"], 3, "There is no submission s99. `farm list` shows those that exist."),
        (["show", "99"], 3, "There is no submission and no job 99."),
        (["show", "1"], 2, "1 is a submission and a job, expected s1 or j1."),
        (["show", "x1"], 2, "'x1' is not an id, expected one such as s12 (a submission) or j34 (a job)."),
        (["why", "s1"], 2, "'s1' is a submission, expected a job such as j12."),
        (["report", "j1"], 2, "'j1' is a job, expected a submission such as s12."),
        (["logs", "j99"], 3, "There is no job j99."),
        (["cancel", "j1"], 4, "j1 is succeeded already"),
        (["cancel", "j99"], 3, "There is no job j99."),
        (["retry", "j1"], 4, "only a failed, cancelled or blocked job can be tried again"),
        (["list", "--before", "j1"], 2, "'j1' is a job, expected a submission"),
        (["list", "s99"], 3, "There is no submission s99."),
    ],
)
@pytest.mark.usefixtures("one_submission", "unharmed")
def test_wrong_ids_and_ended_jobs(
    words: list[str], code: int, message: str, farm_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--home", str(farm_home), *words]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert message in captured.err


COMMANDS_THAT_NEED_A_FARM = [
    ["submit", "--model", "{model}"],
    *(["list"], ["show", "s1"], ["logs", "j1"], ["why", "j1"], ["cancel", "j1"], ["retry", "j1"]),
    *(["devices"], ["report", "s1"], ["status"]),
]


@pytest.mark.parametrize("words", COMMANDS_THAT_NEED_A_FARM, ids=lambda words: words[0])
def test_without_a_farm_every_command_says_how_to_start_one(
    words: list[str], tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "empty"
    assert cli.main(["--home", str(home), *(word.format(model=model) for word in words)]) == 4
    captured = capsys.readouterr()
    assert f"There is no farm in {home}" in captured.err
    assert "`farm up`" in captured.err
    assert not home.exists()


def test_a_database_of_a_newer_program_is_refused(
    farm_home: Path, database: db.Database, capsys: pytest.CaptureFixture[str]
) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    assert cli.main(["--home", str(farm_home), "list"]) == 4
    assert "has revision 9999" in capsys.readouterr().err


def test_a_database_that_cannot_be_written_is_one_message(
    farm_home: Path,
    database: db.Database,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with database.write() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON submissions BEGIN SELECT RAISE(FAIL, 'disk is full'); END"
        )
    assert cli.main(["--home", str(farm_home), "submit", "--model", str(model)]) == 1
    captured = capsys.readouterr()
    assert f"The database of {farm_home} does not work: disk is full." in captured.err
    assert captured.err.count("\n") == 1
    assert farm_driver.count(database, JobState.WAITING) == 0


def test_a_home_that_cannot_be_made_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--home", "/proc/no-such-place/home", "up"]) == 1
    captured = capsys.readouterr()
    assert "cannot write to its home /proc/no-such-place/home" in captured.err
    assert "--home or FARM_HOME" in captured.err
    assert "Traceback" not in captured.err


def test_a_second_farm_in_one_home_is_refused(farm_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = settings.load(home=str(farm_home))
    found.run_dir.mkdir()
    local.LocalFarm(keeper=local.ProcessId.of(os.getpid()), phase=local.READY).write(found)
    assert cli.main(["--home", str(farm_home), "up"]) == 4
    captured = capsys.readouterr()
    assert f"A farm runs in {farm_home} already (process {os.getpid()})" in captured.err
    assert "`farm down`" in captured.err


def test_down_without_a_farm_is_no_error(farm_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--home", str(farm_home), "down"]) == 0
    assert capsys.readouterr().err == f"The farm of {farm_home} was not up.\n"


def farm(home: Path, *words: object) -> list[str]:
    """The command line of a real process."""
    return [sys.executable, "-m", "farm", "--home", str(home), *map(str, words)]


def test_a_process_ends_with_the_code_and_without_a_traceback(farm_home: Path, model: Path) -> None:
    command = farm(farm_home, "submit", "--model", model, "--cores", "0")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "farm: --cores is 0, expected a whole number of at least 1.\n"


def test_a_reader_that_goes_away_is_no_error(farm_home: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        command = farm(farm_home, "list")
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_detaches_a_waiting_process(farm_home: Path, model: Path, database: db.Database) -> None:
    command = farm(farm_home, "submit", "--model", model, "--cores", "8", "--wait")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while "Waiting for 4 jobs" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate()
    assert process.returncode == 130
    assert "s1 goes on" in rest
    assert "Traceback" not in rest
    assert farm_driver.count(database, JobState.WAITING) == 4


def test_the_checkpoint_of_these_tests_is_accepted(
    farm_home: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert CONFIG["model_type"] == "llama"
    assert cli.main(["--home", str(farm_home), "submit", "--model", str(model), "--dry-run"]) == 0
    assert "1 point, 4 jobs" in capsys.readouterr().out
