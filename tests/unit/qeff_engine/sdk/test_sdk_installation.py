"""What doctors say of an SDK, on directories that hold more or less of one."""

from __future__ import annotations

import platform
import shutil
import sys
import textwrap

import pytest

from qeff_engine.sdk import installation
from qeff_engine.sdk.host import Host
from tests.unit.qeff_engine.sdk.test_sdk_host import card, levels

_DEVICES = """
QID 0
\tStatus:Ready
\tPCI Address:0000:01:00.0
\tDram Total:32768 MB
\tNsp Total:16
\tDevice Capabilities:HybridBoot+,MDP+
\tBoard serial:B1
QID 1
\tStatus:{status}
\tPCI Address:0000:02:00.0
\tDram Total:32768 MB
\tNsp Total:16
\tDevice Capabilities:HybridBoot+
\tBoard serial:B1
"""


@pytest.fixture
def sdk(tmp_path):
    """A whole SDK that says it is a real one; tests break it."""
    root = tmp_path / "qti-aic"
    script(root / "exec/qaic-compile", "")
    script(root / "tools/qaic-util", f"print('''{_DEVICES.format(status='Ready')}''')")
    for package in ("apps", "platform"):
        (root / "versions").mkdir(exist_ok=True)
        (root / f"versions/{package}.xml").write_text("<v><base_version>1.20.4</base_version></v>")
    for module in (root / "dev/lib" / platform.machine() / "qaicrt.py", root / "dev/python/QAicApi_pb2.py"):
        module.parent.mkdir(parents=True)
        module.write_text("")
    return root


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(text)}")
    path.chmod(0o755)


def examine(root, tmp_path):
    made_up = tmp_path / "host"
    (made_up / "proc").mkdir(parents=True, exist_ok=True)
    found = installation.examine(sdk_root=root, cache=tmp_path, where=Host(root=made_up)).findings
    return {finding.name: finding for finding in found}


def test_a_whole_sdk_is_fine_but_for_what_the_host_lacks(sdk, tmp_path):
    found = examine(sdk, tmp_path)
    fine = dict.fromkeys(("SDK", "versions", "compiler", "runtime", "devices"), "ok")
    assert {name: levels(found.values())[name] for name in fine} == fine
    assert found["devices"].found == "2 of 2 ready"
    assert levels(found.values())["cards"] == "warn"
    # One device of two says that it cannot be sliced over.
    assert found["MDP"].found == "device 1 lacks it"
    assert "enable_mdp.json" in found["MDP"].advice


def test_no_sdk_is_said_with_how_to_get_one(tmp_path):
    card(tmp_path / "host", 1)
    found = examine(tmp_path / "none", tmp_path)
    assert levels(found.values())["SDK"] == "fail"
    assert "simulated_sdk install" in found["SDK"].advice
    assert "driver" in found, "the host is looked at all the same"


@pytest.mark.parametrize(
    ("apps", "platform_version", "level"),
    [("1.20.4", "1.20.9", "ok"), ("1.21.2", "1.20.4", "warn"), (None, "1.20.4", "warn")],
)
def test_versions_that_do_not_match_are_named(sdk, tmp_path, apps, platform_version, level):
    (sdk / "versions/platform.xml").write_text(f"<v><base_version>{platform_version}</base_version></v>")
    if apps is None:
        (sdk / "versions/apps.xml").unlink()
    else:
        (sdk / "versions/apps.xml").write_text(f"<v><base_version>{apps}</base_version></v>")
    found = examine(sdk, tmp_path)["versions"]
    assert (str(found.level), bool(found.advice)) == (level, level == "warn")


def test_a_missing_compiler_means_the_platform_sdk_alone(sdk, tmp_path):
    shutil.rmtree(sdk / "exec")
    found = examine(sdk, tmp_path)
    assert levels(found.values())["compiler"] == "fail"
    assert "Install the Apps SDK" in found["compiler"].advice
    assert levels(found.values())["runtime"] == "ok"


def test_a_runtime_for_another_python_is_named(sdk, tmp_path):
    folder = sdk / "dev/lib" / platform.machine()
    (folder / "qaicrt.py").unlink()
    (folder / "qaicrt.cpython-38-x86_64-linux-gnu.so").write_bytes(b"")
    found = examine(sdk, tmp_path)["runtime"]
    assert (str(found.level), found.found) == ("fail", "ModuleNotFoundError: No module named 'qaicrt'")
    assert "which has qaicrt.cpython-38-x86_64-linux-gnu.so" in found.advice


def test_a_runtime_that_dies_while_it_loads_is_named(sdk, tmp_path):
    (sdk / "dev/python/QAicApi_pb2.py").write_text("import os; os.abort()")
    assert examine(sdk, tmp_path)["runtime"].found == "exit code -6"


def test_a_device_in_error_is_named_with_its_reset(sdk, tmp_path):
    script(sdk / "tools/qaic-util", f"print('''{_DEVICES.format(status='Error')}''')")
    found = examine(sdk, tmp_path)
    assert (found["devices"].found, str(found["devices"].level)) == ("1 of 2 ready", "ok")
    assert (found["device 1"].found, str(found["device 1"].level)) == ("Error at 0000:02:00.0", "warn")
    assert "qaic-util -s -d 1" in found["device 1"].advice


@pytest.mark.parametrize(
    ("text", "found"), [("", "0 of 0 ready"), ("import sys; sys.exit('no driver')", "exit code 1")]
)
def test_a_tool_that_finds_no_device_or_fails_is_named(sdk, tmp_path, text, found):
    script(sdk / "tools/qaic-util", text)
    finding = examine(sdk, tmp_path)["devices"]
    assert str(finding.level) == "fail"
    assert found in finding.found


def test_a_simulated_sdk_asks_for_no_cards(simulated_sdk_root, tmp_path):
    found = examine(simulated_sdk_root, tmp_path)
    assert not {"cards", "driver", "permission", "IOMMU", "MDP"} & found.keys()
    assert {name: level for name, level in levels(found.values()).items() if level == "fail"} == {}
