"""Makes a directory that looks like an installed Cloud AI SDK. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path

from qeff_engine.simulated_sdk import devices as device_list
from qeff_engine.simulated_sdk.occupancy import STATE_DIRECTORY

MARKER = "SIMULATED"
DEFAULT_VERSION = "1.20.4"

_TOOLS = {
    "exec/qaic-compile": "compiler_cli",
    "exec/qaic-exec": "compiler_cli",
    "exec/qaic-runner": "runner_cli",
    "tools/qaic-util": "util_cli",
    "tools/qaic-version-util": "version_cli",
    "tools/qaic-qpc": "qpc_cli",
}
_PLAIN = (
    "tools/qaic-util",
    "tools/qaic-version-util",
)  # which need no packages, and start faster without looking for any
_SCRIPTS = {"scripts/qaic-model-configurator/model_configurator.py": "configurator_cli"}
_LONGEST_SHEBANG = 120


class BadInstall(ValueError):
    """An installation that was asked for cannot be made."""


def install(directory: Path | str, *, devices: str, version: str = DEFAULT_VERSION) -> Path:
    """Install a simulated SDK and return its absolute path.

    A new one appears whole or not at all. Over an older simulated one every file is replaced by rename, so that running
    tools never see half a file; programs that are active stay active.

    Args:
        directory: becomes what ``/opt/qti-aic`` is on a host with cards.
        devices: such as ``ultra:4,standard:1``; see :func:`qeff_engine.simulated_sdk.devices.parse`.
        version: what the version files say, such as ``1.20.4``.

    Raises:
        BadInstall: the directory holds something else, or the version is none.
        qeff_engine.simulated_sdk.devices.BadDevices: ``devices`` names no devices.
        OSError: the directory cannot be written.
    """
    root = Path(directory).absolute()
    if not re.fullmatch(r"\d+\.\d+(\.\d+)*", version):
        raise BadInstall(f"'{version}' is not a version, expected numbers with dots such as {DEFAULT_VERSION}.")
    files = _files(devices=device_list.parse(devices), version=version)
    if root.exists() and not root.is_dir():
        raise BadInstall(f"{root} is a file, expected a directory or nothing.")
    if root.exists() and any(root.iterdir()) and not (root / MARKER).is_file():
        raise BadInstall(f"{root} is not empty and no simulated SDK. Choose another directory.")
    if (root / MARKER).is_file() or not _install_new(root, files=files):
        _write(root, files=files)
    return root


def _install_new(root: Path, *, files: dict[str, str]) -> bool:
    """Build beside ``root`` and rename; False when somebody else has filled ``root`` in the meantime."""
    root.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        building.chmod(0o755)
        _write(building, files=files)
        building.rename(root)
    except OSError:
        shutil.rmtree(building, ignore_errors=True)
        if (root / MARKER).is_file():
            return False
        raise
    return True


def _write(root: Path, *, files: dict[str, str]) -> None:
    (root / STATE_DIRECTORY).mkdir(exist_ok=True)
    for name, text in files.items():
        path = root / name
        with contextlib.suppress(OSError):
            if path.read_text() == text:
                continue
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text)
        temporary.chmod(0o755 if name in _TOOLS or name in _SCRIPTS else 0o644)
        temporary.replace(path)


def _files(*, devices: list[device_list.Device], version: str) -> dict[str, str]:
    """The text of every file by its path in the SDK; the marker comes first, since it makes the rest ours."""
    note = "A simulated Cloud AI SDK: figures are predictions of a cost model, not of a card."
    files = {MARKER: json.dumps({"version": version, "note": note}, indent=1) + "\n"}
    files |= {
        name: _script(module, parents=name.count("/"), plain=name in _PLAIN)
        for name, module in (_TOOLS | _SCRIPTS).items()
    }
    files[f"dev/lib/{platform.machine()}/qaicrt.py"] = _module("runtime", parents=3, bind=True)
    files["dev/python/QAicApi_pb2.py"] = _module("descriptor", parents=2, bind=False)
    for package in ("apps", "platform"):
        files[f"versions/{package}.xml"] = _version_xml(package, version=version)
    files[device_list.DEVICES_FILE] = device_list.to_json(devices)
    return files


def _script(module: str, *, parents: int, plain: bool) -> str:
    """An executable that runs ``main`` of one of our modules with the Python that installed it.

    Args:
        module: ours.
        parents: folders between the SDK's root and the script.
        plain: it needs the standard library and us only.
    """
    option = " -S" if plain else ""
    # Their work is mostly imports, which leave no garbage to look for.
    begin = "import gc\n\ngc.disable()\n" if plain else ""
    shebang = f"#!{sys.executable}{option}"
    if len(shebang) > _LONGEST_SHEBANG or " " in sys.executable:
        # Kernels cut long interpreter lines and split at blanks; sh takes any path, and Python reads the line as text.
        shebang = f"#!/bin/sh\n'''exec' \"{sys.executable}\"{option} \"$0\" \"$@\"\n' '''"
    return f"""{shebang}
{begin}import os
import sys
from pathlib import Path

# It may be started as an argument of another Python, which lacks our packages.
if sys.executable not in ("", {sys.executable!r}) and os.path.exists({sys.executable!r}):
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv])
sys.path[0] = {_package_parent()!r}
from qeff_engine.simulated_sdk.{module} import main

sys.exit(main(sys.argv[1:], root=Path(__file__).resolve().parents[{parents}]))
"""


def _module(module: str, *, parents: int, bind: bool) -> str:
    """A Python module that shows the public names of one of ours, bound to the SDK it lies in."""
    root = f"Path(__file__).resolve().parents[{parents}]"
    bound = f"\n_source.bind({root})" if bind else ""
    return f'''"""Part of a simulated Cloud AI SDK."""

import sys
from pathlib import Path

try:
    from qeff_engine.simulated_sdk import {module} as _source
except ImportError:
    sys.path.append({_package_parent()!r})
    from qeff_engine.simulated_sdk import {module} as _source
{bound}
globals().update({{name: getattr(_source, name) for name in _source.PUBLIC}})
'''


def _package_parent() -> str:
    return str(Path(__file__).resolve().parents[2])


def _version_xml(package: str, *, version: str) -> str:
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<versions>
  <ci_build>
    <base_version>{version}</base_version>
    <build_id>0</build_id>
    <name>qaic-{package}-simulated</name>
  </ci_build>
</versions>
"""
