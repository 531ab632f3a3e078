"""What of the Cloud AI SDK is installed and works: finding after finding. Standard library only."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from qeff_engine.errors import EngineError
from qeff_engine.sdk import devices, host, location
from qeff_engine.sdk.devices import Device
from qeff_engine.sdk.host import Finding, Host, Level, judged
from qeff_engine.sdk.location import Sdk

_IMPORT_LIMIT_S = 60.0
_IMPORT = "import qaicrt, QAicApi_pb2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkup:
    """What was found on a host.

    Attributes:
        findings: one by one.
        sdk: the SDK; None when there is none.
        devices: its devices; empty when they could not be asked for.
    """

    findings: tuple[Finding, ...]
    sdk: Sdk | None
    devices: tuple[Device, ...]


def examine(*, sdk_root: Path | None = None, cache: Path, where: Host | None = None) -> Checkup:
    """Look at the SDK, its devices and the host.

    Args:
        sdk_root: the SDK; by default as :func:`qeff_engine.sdk.location.find` has it.
        cache: where programs are kept.
        where: the host; by default this one.
    """
    where = where or Host()
    try:
        sdk = location.find(sdk_root)
    except EngineError as error:
        missing = Finding(name="SDK", level=Level.FAIL, found=_first_sentence(error), advice=error.advice)
        return Checkup(findings=(missing, *host.for_cards(where)), sdk=None, devices=())
    kind = " simulated" if sdk.simulated else ""
    found = [Finding(name="SDK", level=Level.OK, found=f"{sdk.root}{kind}"), _versions(sdk), _compiler(sdk)]
    known, device_findings = _devices(sdk)
    found += [_runtime(sdk), *device_findings]
    if not sdk.simulated:
        found += host.for_cards(where)
        if len(known) > 1:
            found.append(_capabilities(known))
    found += host.for_compiling(where, cache=cache, simulated=sdk.simulated)
    return Checkup(findings=tuple(found), sdk=sdk, devices=tuple(known))


def _versions(sdk: Sdk) -> Finding:
    apps, platform = sdk.versions.get("apps"), sdk.versions.get("platform")
    words = ", ".join(f"{package} {version}" for package, version in sdk.versions.items()) or "unknown"
    mismatch = apps and platform and apps.split(".")[:2] != platform.split(".")[:2]
    advice = (
        "Programs of one version of the compiler may be refused by a runtime of another: install Apps and Platform SDK "
        "of the same release."
        if mismatch
        else f"{sdk.root}/versions/apps.xml and platform.xml say them; reinstall the package whose file is missing."
    )
    return judged("versions", Level.OK if apps and platform and not mismatch else Level.WARN, words, advice=advice)


def _compiler(sdk: Sdk) -> Finding:
    try:
        path = Path(sdk.compiler()[0])
    except EngineError as error:
        return Finding(name="compiler", level=Level.FAIL, found=_first_sentence(error), advice=error.advice)
    executable = os.access(path, os.X_OK)
    return judged(
        "compiler", Level.OK if executable else Level.FAIL, str(path), advice=f"It may not be executed: chmod +x {path}"
    )


def _runtime(sdk: Sdk) -> Finding:
    """Whether this Python can load the SDK's modules, tried in a process of its own."""
    folders = [str(folder) for folder in sdk.runtime_directories]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([*folders, *filter(None, sys.path)])}
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environ,
            timeout=_IMPORT_LIMIT_S,
            check=False,
        )
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        failure = lines[-1] if done.returncode else ""
    except subprocess.TimeoutExpired:
        failure = f"importing it takes more than {_IMPORT_LIMIT_S:g} s"
    if not failure:
        return Finding(name="runtime", level=Level.OK, found=f"qaicrt for Python {version}")
    built = sorted(path.name for path in sdk.runtime_directories[0].glob("qaicrt*"))
    return judged(
        "runtime",
        Level.FAIL,
        failure,
        advice=f"Expected qaicrt for Python {version} in {folders[0]}, which has {', '.join(built) or 'none'}. Install "
        "the Platform SDK, or use the Python that it was built for.",
    )


def _devices(sdk: Sdk) -> tuple[list[Device], list[Finding]]:
    try:
        known = devices.discover(sdk)
    except EngineError as error:
        return [], [Finding(name="devices", level=Level.FAIL, found=_first_sentence(error), advice=error.advice)]
    ready = sum(device.ready for device in known)
    found = [
        judged(
            "devices",
            Level.OK if ready else Level.FAIL,
            f"{ready} of {len(known)} ready",
            advice="`qaic-util -q` shows their states."
            if known
            else "The SDK finds no device: this host can compile and not run.",
        )
    ]
    found += [
        judged(
            f"device {device.qid}",
            Level.WARN if ready else Level.FAIL,
            f"{device.status} at {device.pci_address or 'an unknown address'}",
            advice="Error also means that you may not open it (group qaic). Else see the kernel's log; `qaic-util -s "
            f"-d {device.qid}` resets its card, with all programs on it.",
        )
        for device in known
        if not device.ready
    ]
    return known, found


def _capabilities(known: Sequence[Device]) -> Finding:
    lacking = [
        device.qid for device in known if device.ready and device.capabilities and "MDP+" not in device.capabilities
    ]
    return judged(
        "MDP",
        Level.WARN if lacking else Level.OK,
        f"device {lacking[0]} lacks it" if lacking else "not denied by any device",
        advice="For programs over several devices enable it: `qaic-monitor-json -i enable_mdp.json`, then "
        "`qaic-util -s`.",
    )


def _first_sentence(error: EngineError) -> str:
    return Exception.__str__(error).splitlines()[0]
