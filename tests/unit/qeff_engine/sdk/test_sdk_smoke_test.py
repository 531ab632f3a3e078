"""The test of a device after a fault, on simulated devices that are well and that are not."""

import json
import sys

import pytest

from qeff_engine.sdk import smoke_test
from qeff_engine.simulated_sdk.install import install


@pytest.fixture
def tested(simulated_sdk_root, tmp_path_factory, monkeypatch, capsys):
    """Exit code and words of a test of device 0 while the SDK has some faults; what it compiles is kept."""
    monkeypatch.delenv("QAIC_SIM_FAULTS", raising=False)
    programs = tmp_path_factory.getbasetemp() / "smoke-test-programs"

    def run(*faults, root=simulated_sdk_root):
        (root / "faults.json").write_text(json.dumps({"faults": faults}))
        code = smoke_test.main(["--sdk", str(root), "--qid", "0", "--programs", str(programs)])
        return code, capsys.readouterr().out

    yield run
    (simulated_sdk_root / "faults.json").unlink(missing_ok=True)


def test_a_device_that_computes_passes_and_one_that_does_not_says_what_is_wrong(tested):
    assert tested() == (0, "")
    for fault, said in (
        ({"kind": "wrong-numbers"}, "It computes wrong: "),
        ({"kind": "device-error"}, "qaic-util says Error."),
        ({"kind": "device-missing"}, "qaic-util says nothing of it."),
        ({"kind": "device-ssr"}, "The runtime could not run the program"),
        ({"kind": "device-timeout"}, "The runtime could not run the program"),
        ({"kind": "activation-refused", "code": "state"}, "Timed out waiting for a state change"),
    ):
        code, words = tested({**fault, "device": 0})
        assert code == 1
        assert said in words
        assert words.count("\n") == 1
    assert tested({"kind": "wrong-numbers", "device": 1}) == (0, "")


def test_being_ready_has_to_do_where_nothing_can_be_compiled(tested, tmp_path):
    root = install(tmp_path / "sdk", devices="ultra:1", version="1.19.0")
    assert tested({"kind": "compiler-crash"}, root=root)[0] == 0
    assert tested({"kind": "device-error"}, root=root)[0] == 1


@pytest.mark.parametrize(
    ("line", "code"),
    [("print('InferenceCnt 5 TotalDuration 9us BatchSize 1 Inf/Sec 555.0')", 0), ("raise SystemExit('no')", 1)],
)
def test_the_sdks_own_test_program_is_run_where_there_is_one(tested, tmp_path, line, code):
    root = install(tmp_path / "sdk", devices="ultra:1")
    own = root / "test-data/aic100/v2/1nsp/1nsp-conv-hmx"
    own.mkdir(parents=True)
    asked = tmp_path / "asked"
    runner = root / "exec" / "qaic-runner"
    runner.unlink(missing_ok=True)
    runner.write_text(
        f"#!{sys.executable}\nimport sys\nopen({str(asked)!r}, 'w').write(' '.join(sys.argv[1:]))\n{line}\n"
    )
    runner.chmod(0o755)
    assert tested(root=root)[0] == code
    assert asked.read_text() == f"-t {own} -a 1 -n 500 -d 0"
