from pathlib import Path

import pytest

from qeff_engine.errors import Infrastructure
from qeff_engine.sdk import location

APPS_XML = """<?xml version="1.0"?>
<versions><ci_build><name>apps</name><base_version>1.21.2.0</base_version></ci_build>
<older><base_version>1.20.0.0</base_version></older></versions>
"""


@pytest.fixture
def sdk_root(tmp_path):
    for name in ("exec/qaic-compile", "exec/qaic-exec", "tools/qaic-util"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "apps.xml").write_text(APPS_XML)
    (tmp_path / "versions" / "platform.xml").write_text(APPS_XML.replace("1.21.2.0", "1.21.4.0"))
    return tmp_path


def test_explicit_root_wins_over_the_environment(sdk_root):
    assert location.find(sdk_root, environ={"QAIC_SDK_ROOT": "/nowhere"}).root == sdk_root


def test_environment_is_used_when_no_root_is_given(sdk_root):
    assert location.find(environ={"QAIC_SDK_ROOT": str(sdk_root)}).root == sdk_root


def test_a_wrong_root_is_not_replaced_by_another_place(sdk_root):
    with pytest.raises(Infrastructure, match="No Cloud AI SDK at /nowhere"):
        location.find(Path("/nowhere"), environ={"QAIC_SDK_ROOT": str(sdk_root)})


@pytest.mark.parametrize(
    ("environ", "where"),
    [({}, "/opt/qti-aic (the default"), ({"QAIC_SDK_ROOT": "/nowhere"}, "/nowhere (where QAIC_SDK_ROOT points)")],
)
def test_missing_sdk_says_where_it_was_looked_for_and_how_to_get_one(monkeypatch, environ, where):
    monkeypatch.setattr(Path, "is_dir", lambda self: False)
    with pytest.raises(Infrastructure) as caught:
        location.find(environ=environ)
    assert where in str(caught.value)
    assert "python -m qeff_engine.simulated_sdk install DIR" in caught.value.advice


def test_versions_are_the_first_base_version_of_each_file(sdk_root):
    sdk = location.find(sdk_root)
    assert sdk.versions == {"apps": "1.21.2.0", "platform": "1.21.4.0"}
    assert sdk.toolchain() == {"sdk_apps": "1.21.2.0", "sdk_platform": "1.21.4.0"}


def test_a_simulated_sdk_never_shares_a_toolchain_with_a_real_one(sdk_root):
    real = location.find(sdk_root).toolchain()
    (sdk_root / "SIMULATED").touch()
    simulated = location.find(sdk_root)
    assert simulated.simulated
    assert not set(real.values()) & set(simulated.toolchain().values())


@pytest.mark.parametrize("content", [None, "<versions>", "<versions/>"])
def test_unreadable_version_is_unknown_and_counts_as_old(sdk_root, content):
    path = sdk_root / "versions" / "apps.xml"
    path.unlink()
    if content is not None:
        path.write_text(content)
    sdk = location.find(sdk_root)
    assert sdk.toolchain()["sdk_apps"] == "unknown"
    assert not sdk.is_at_least(apps=(1, 0))


def test_a_version_in_a_name_space_and_with_a_prefix_is_read(sdk_root):
    text = '<a:versions xmlns:a="urn:x"><a:base_version> AIC.1.22.0.5 </a:base_version></a:versions>'
    (sdk_root / "versions" / "apps.xml").write_text(text)
    sdk = location.find(sdk_root)
    assert sdk.versions["apps"] == "AIC.1.22.0.5"
    assert sdk.is_at_least(apps=(1, 22))


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('[ "$1" = --apps ] && echo "apps:AIC.1.6.80"', {"apps": "1.6.80"}),
        ("echo 1.20.4.0", {"apps": "1.20.4.0", "platform": "1.20.4.0"}),
        ("printf 'platform:AIC.1.6.80\\napps:not found\\nfactory:not found\\n'", {"platform": "1.6.80"}),
        ("echo 1.20.4.0; exit 3", {}),
        ("echo no version here", {}),
    ],
)
def test_the_sdks_own_tool_is_asked_where_files_say_nothing(sdk_root, script, expected):
    for path in (sdk_root / "versions").iterdir():
        path.unlink()
    tool = sdk_root / "tools" / "qaic-version-util"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    assert location.find(sdk_root).versions == expected


@pytest.mark.parametrize(("version", "expected"), [("1.21.9.0", False), ("1.22.0.0", True), ("2.0.1", True)])
def test_versions_compare_as_numbers(sdk_root, version, expected):
    (sdk_root / "versions" / "apps.xml").write_text(APPS_XML.replace("1.21.2.0", version))
    assert location.find(sdk_root).is_at_least(apps=(1, 22)) is expected


def test_the_newer_compiler_is_preferred_and_the_older_one_told_to_stop_after_compiling(sdk_root):
    sdk = location.find(sdk_root)
    assert sdk.compiler() == (str(sdk_root / "exec/qaic-compile"),)
    (sdk_root / "exec/qaic-compile").unlink()
    assert sdk.compiler() == (str(sdk_root / "exec/qaic-exec"), "-compile-only")
    (sdk_root / "exec/qaic-exec").unlink()
    with pytest.raises(Infrastructure, match="has no compiler"):
        sdk.compiler()


def test_a_missing_tool_is_named(sdk_root):
    with pytest.raises(Infrastructure, match="has no qaic-qpc"):
        location.find(sdk_root).tool("qaic-qpc")
