"""The look at a program that a compiler has left, with the simulated tool and with other ones."""

import sys

import pytest

from qeff_engine.errors import CompilerCrash
from qeff_engine.sdk import location, qpc
from qeff_engine.spec import CompileSpec
from tests.unit.qeff_engine.sdk.test_sdk_session import compile_toy


def test_a_whole_program_tells_what_it_needs_and_a_damaged_one_is_a_crash(simulated_sdk_root, tmp_path):
    sdk = location.find(simulated_sdk_root)
    program = compile_toy(tmp_path, sdk=sdk, spec=CompileSpec(num_cores=3, prefill_len=4, ctx_len=32))
    needs = qpc.validated(sdk, program=program)
    assert needs.num_cores == 3
    assert needs.dram_bytes is not None
    assert needs.dram_bytes > (program / "programqpc.bin").stat().st_size
    with (program / "programqpc.bin").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(CompilerCrash, match=r"left a damaged program: Invalid qpc, .* has 5000 bytes"):
        qpc.validated(sdk, program=program)


@pytest.mark.parametrize(
    ("script", "needs"),
    [
        ("print('Number of NSP required: 14')", qpc.Needs(num_cores=14)),
        ("raise SystemExit('Usage: qaic-qpc info FILE')", qpc.Needs()),
    ],
)
def test_a_tool_of_another_version_is_believed_as_far_as_it_goes(tmp_path, script, needs):
    tool = tmp_path / "tools" / "qaic-qpc"
    tool.parent.mkdir()
    tool.write_text(f"#!{sys.executable}\n{script}\n")
    tool.chmod(0o755)
    assert qpc.validated(location.find(tmp_path), program=tmp_path) == needs


def test_without_the_tool_nothing_is_known(tmp_path):
    (tmp_path / "tools").mkdir()
    assert qpc.validated(location.find(tmp_path), program=tmp_path) == qpc.Needs()
