"""The file of faults: what it may say, which calls a fault is for, and that its counting survives races and kills."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qeff_engine.simulated_sdk import __main__, devices, faults
from qeff_engine.simulated_sdk.fault_kinds import KINDS, RUNTIME
from qeff_engine.simulated_sdk.install import install


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.delenv("QAIC_SIM_FAULTS", raising=False)
    return install(tmp_path / "sdk", devices="ultra:2")


def have(root, *entries):
    (root / "faults.json").write_text(json.dumps({"faults": entries}))


def shows(root, *, kind="device-ssr", device=None, model="", tool=RUNTIME):
    return bool(faults.occurring(root, tool=tool, kinds=(kind,), device=device, model=model))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"kind": "nonsense"}, "has the kind 'nonsense', expected one of compiler-error,"),
        ({}, "has the kind None"),
        ("device-ssr", "fault 1 is 'device-ssr', expected an object"),
        ({"kind": "device-slow", "factor": 0.5}, "has factor 0.5, expected a number from 1 to 1000"),
        ({"kind": "device-slow", "factor": True}, "has factor True"),
        ({"kind": "device-slow", "facter": 2}, "has the field 'facter', expected one of factor, device,"),
        ({"kind": "device-ssr", "times": 0}, "has times 0, expected a whole number from 1"),
        ({"kind": "device-ssr", "after": -1}, "has after -1, expected a whole number from 0"),
        ({"kind": "device-ssr", "probability": 2}, "has probability 2, expected a number from 0 to 1"),
        ({"kind": "device-ssr", "tool": "qaic-util"}, "has tool 'qaic-util', expected one of qaicrt"),
        ({"kind": "compiler-crash", "device": "0"}, "a compiler uses no device"),
        ({"kind": "device-ssr", "id": "../x"}, "letters, digits, dots"),
        ({"kind": "activation-refused", "code": "bad"}, "has code 'bad', expected one of nsp, memory, vc,"),
    ],
)
def test_what_cannot_be_understood_is_refused_with_what_was_expected(entry, said):
    with pytest.raises(faults.BadFaults) as raised:
        faults.parse(json.dumps([entry]), origin="X")
    assert str(raised.value).startswith("X: fault")
    assert said in str(raised.value)


@pytest.mark.parametrize("text", ["{", "3", '{"fault": []}', "[1"])
def test_a_text_of_another_form_is_refused(text):
    with pytest.raises(faults.BadFaults, match=r"^X "):
        faults.parse(text, origin="X")


def test_two_faults_cannot_have_one_name():
    with pytest.raises(faults.BadFaults, match="two faults with the id 'a'"):
        faults.parse('[{"kind": "device-ssr", "id": "a"}, {"kind": "device-error", "id": "a"}]', origin="X")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_defaults_that_it_takes_itself_and_survives_being_written(kind):
    (fault,) = faults.parse(json.dumps([{"kind": kind}]), origin="X")
    assert faults.parse(json.dumps([fault.to_json()]), origin="X") == [fault]


def test_a_fault_is_for_a_device_by_any_of_its_names(root):
    first, second = devices.load(root)
    serial = first.board_serial
    assert second.board_serial == serial, "both are on one board"
    for name, both in (
        (0, False),
        (f"{serial}/{first.pci_address}", False),
        (first.pci_address, False),
        (serial, True),
    ):
        have(root, {"kind": "device-ssr", "device": name})
        assert (shows(root, device=first), shows(root, device=second)) == (True, both)


def test_a_fault_is_for_a_model_by_pattern_and_for_a_tool_by_name(root):
    have(root, {"kind": "device-error", "model": "dec*", "tool": "qaic-util"})
    assert [shows(root, kind="device-error", model=name, tool="qaic-util") for name in ("decoder", "vision")] == [
        True,
        False,
    ]
    assert not shows(root, kind="device-error", model="decoder")


def test_calls_pass_first_and_then_it_shows_so_often(root):
    have(root, {"kind": "device-ssr", "after": 2, "times": 3})
    assert [shows(root) for _ in range(8)] == [False] * 2 + [True] * 3 + [False] * 3


def test_chance_is_the_same_for_the_same_seed_and_near_what_was_asked(root):
    def drawn(seed):
        have(root, {"kind": "device-ssr", "probability": 0.3, "seed": seed, "id": "chance"})
        for path in (root / "state" / "faults").glob("chance*"):
            path.unlink()
        return [shows(root) for _ in range(100)]

    first = drawn(1)
    assert first == drawn(1) != drawn(2)
    assert 0.15 < sum(first) / 100 < 0.45  # three standard deviations


def test_a_fault_that_is_set_anew_with_other_words_begins_anew(root):
    have(root, {"kind": "device-ssr", "times": 1})
    assert [shows(root), shows(root)] == [True, False]
    have(root, {"kind": "device-ssr", "times": 2})
    assert [shows(root), shows(root), shows(root)] == [True, True, False]


def _count(root, number, found):
    found.put(sum(shows(root) for _ in range(number)))


def test_processes_that_race_see_it_as_often_as_was_asked(root):
    have(root, {"kind": "device-ssr", "after": 5, "times": 7})
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    racing = [context.Process(target=_count, args=(root, 20, found)) for _ in range(3)]
    for process in racing:
        process.start()
    for process in racing:
        process.join()
    assert sum(found.get() for _ in racing) == 7


def _note(root, number, found):
    for _ in range(number):
        found.put([fault.id for fault in faults.occurring(root, tool=RUNTIME, kinds=("device-ssr",))])


def test_faults_that_fit_the_same_calls_number_them_alike_whoever_races(root):
    have(root, *({"id": f"n{number}", "kind": "device-ssr", "after": number, "times": 1} for number in range(30)))
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    racing = [context.Process(target=_note, args=(root, 10, found)) for _ in range(3)]
    for process in racing:
        process.start()
    for process in racing:
        process.join()
    assert sorted(found.get() for _ in range(30)) == sorted([f"n{number}"] for number in range(30))


def test_a_process_killed_while_it_counts_holds_nobody_up_and_damages_nothing(root):
    have(root, {"kind": "device-ssr", "times": 1})
    program = (
        "import sys, pathlib\nfrom qeff_engine.simulated_sdk import faults\n"
        "with faults.locked(pathlib.Path(sys.argv[1])):\n print(flush=True)\n sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        (root / "state" / "faults" / ".f1-0.new").write_text("[1")  # what it was about to rename
        os.kill(process.pid, signal.SIGKILL)
    assert [shows(root), shows(root)] == [True, False]


def test_faults_come_from_the_environment_too_as_text_or_path(root, tmp_path, monkeypatch):
    monkeypatch.setenv("QAIC_SIM_FAULTS", '[{"kind": "device-ssr", "times": 1}]')
    assert [shows(root), shows(root)] == [True, False]
    (tmp_path / "more.json").write_text('{"faults": [{"kind": "device-error"}]}')
    monkeypatch.setenv("QAIC_SIM_FAULTS", str(tmp_path / "more.json"))
    assert shows(root, kind="device-error")
    monkeypatch.setenv("QAIC_SIM_FAULTS", "nowhere")
    with pytest.raises(faults.BadFaults, match="names nowhere, expected a file or JSON"):
        shows(root)


def test_a_change_of_the_file_is_seen_at_the_next_call(root):
    assert not shows(root)
    have(root, {"kind": "device-ssr"})
    assert shows(root)
    (root / "faults.json").unlink()
    assert not shows(root)


def command(root, *words):
    return __main__.main(["fault", str(root), *words])


def test_people_set_list_and_clear_faults(root, capsys):
    assert command(root, "set", "device-ssr", "--device", "1", "--once") == 0
    assert command(root, "set", "compiler-hang", "--with", "ignore_sigterm=true", "--id", "stuck") == 0
    assert capsys.readouterr().out.split() == ["f1", "stuck"]
    assert shows(root, device=devices.load(root)[1])
    assert command(root, "list") == 0
    assert capsys.readouterr().out == (
        "f1  device-ssr  device=1 times=1  (1 of 1 times)\nstuck  compiler-hang  ignore_sigterm=True\n"
    )
    assert command(root, "clear", "f1") == 0
    assert command(root, "list", "--json") == 0
    (left,) = json.loads(capsys.readouterr().out)
    assert (left["id"], left["parameters"]) == ("stuck", {"ignore_sigterm": True})
    assert command(root, "clear") == 0
    assert not (root / "faults.json").exists()


def test_a_fault_that_is_set_again_by_hand_begins_anew(root, capsys):
    for _ in range(2):
        assert command(root, "set", "device-ssr", "--once", "--id", "x") == 0
        assert [shows(root), shows(root)] == [True, False]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("set", "device-slow", "--with", "factor"), "'factor' is no parameter, expected NAME=VALUE"),
        (("set", "device-slow", "--with", "factor=0"), "factor 0, expected a number from 1"),
        (("clear", "f7"), "There is no fault 'f7'; there are: none."),
    ],
)
def test_wrong_usage_changes_nothing_and_says_why(root, capsys, words, said):
    assert command(root, *words) == 2
    assert said in capsys.readouterr().err
    assert not (root / "faults.json").exists()


def test_only_a_simulated_sdk_can_be_made_to_fail(tmp_path, capsys):
    assert command(tmp_path, "list") == 2
    assert "is no simulated SDK" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_can_be_cleared(root, capsys):
    (root / "faults.json").write_text("{")
    assert command(root, "list") == 2
    assert command(root, "clear") == 0
    assert command(root, "list") == 0
    capsys.readouterr()


def test_the_page_and_the_help_name_every_kind_and_parameter(root, capsys):
    with pytest.raises(SystemExit):
        command(root, "--help")
    told = capsys.readouterr().out
    page = (Path(__file__).parents[4] / "docs" / "simulated-sdk.md").read_text()
    for name, kind in KINDS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert name in told
        for parameter in kind.parameters:
            assert f"`{parameter}`" in row
            assert f"    {parameter}=" in told
