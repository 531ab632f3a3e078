"""Where the Cloud AI SDK is, which of its tools it has, and its versions. Standard library only."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from qeff_engine.errors import Infrastructure
from qeff_engine.sdk import asking

DEFAULT_ROOT = Path("/opt/qti-aic")
ROOT_VARIABLE = "QAIC_SDK_ROOT"
HOW_TO_GET_ONE = (
    "Install the Cloud AI SDK, or make a simulated one with "
    "`python -m qeff_engine.simulated_sdk install DIR --devices ultra:1` and point QAIC_SDK_ROOT to DIR."
)

_SIMULATED_MARKER = "SIMULATED"
_UNKNOWN_VERSION = "unknown"
_PACKAGES = ("apps", "platform")
_ASKING_S = 10.0  # for the tool that tells versions; it only reads files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sdk:
    """An installed Cloud AI SDK.

    Attributes:
        root: its directory.
        versions: version by package (``apps``: compiler, ``platform``: runtime), as far as its files say.
        simulated: it is a simulated SDK, so its figures are not of a real card.
    """

    root: Path
    versions: Mapping[str, str]
    simulated: bool

    def compiler(self) -> tuple[str, ...]:
        """The beginning of a compiler command line: the tool and what makes it only compile.

        Raises:
            Infrastructure: the SDK has no compiler, as on hosts with the Platform SDK alone.
        """
        current, older = self.root / "exec" / "qaic-compile", self.root / "exec" / "qaic-exec"
        if current.is_file():
            return (str(current),)
        if older.is_file():
            return (str(older), "-compile-only")
        raise Infrastructure(
            f"The SDK at {self.root} has no compiler: neither {current} nor {older} exists.",
            advice="Install the Apps SDK, or compile on a host that has it.",
        )

    def tool(self, name: str) -> Path:
        """The path of a tool under ``tools/``.

        Raises:
            Infrastructure: there is no such tool.
        """
        path = self.root / "tools" / name
        if not path.is_file():
            raise Infrastructure(
                f"The SDK at {self.root} has no {name}: {path} does not exist.", advice="Install the Platform SDK."
            )
        return path

    @property
    def runner(self) -> Path | None:
        """The tool that measures programs, if the SDK has it."""
        path = self.root / "exec" / "qaic-runner"
        return path if path.is_file() else None

    @property
    def runtime_directories(self) -> tuple[Path, Path]:
        """Where the modules ``qaicrt`` and ``QAicApi_pb2`` are."""
        return self.root / "dev" / "lib" / platform.machine(), self.root / "dev" / "python"

    def is_at_least(self, *, apps: tuple[int, int]) -> bool:
        """Whether the compiler's version is ``apps`` (major, minor) or newer; an unknown version counts as older."""
        found = re.search(r"(\d+)\.(\d+)", self.versions.get("apps", ""))
        return found is not None and (int(found[1]), int(found[2])) >= apps

    def toolchain(self) -> dict[str, str]:
        """Versions for action keys: ``sdk_apps`` and ``sdk_platform``. A simulated SDK never equals a real one."""
        suffix = "-simulated" if self.simulated else ""
        return {f"sdk_{package}": self.versions.get(package, _UNKNOWN_VERSION) + suffix for package in _PACKAGES}


def find(root: Path | None = None, *, environ: Mapping[str, str] | None = None) -> Sdk:
    """The SDK at ``root``, else where ``QAIC_SDK_ROOT`` points, else at ``/opt/qti-aic``.

    Only the first of these places that is given is looked at, so a typing mistake never selects another SDK.

    Raises:
        Infrastructure: there is no SDK.
    """
    environ = os.environ if environ is None else environ
    if root is not None:
        origin = "the SDK root that was given"
    elif environ.get(ROOT_VARIABLE):
        root, origin = Path(environ[ROOT_VARIABLE]), f"where {ROOT_VARIABLE} points"
    else:
        root, origin = DEFAULT_ROOT, f"the default, as {ROOT_VARIABLE} is not set"
    root = root.absolute()
    if not any((root / folder).is_dir() for folder in ("exec", "tools")):
        raise Infrastructure(
            f"No Cloud AI SDK at {root} ({origin}): expected a directory with exec/qaic-compile, tools/qaic-util "
            "and versions/apps.xml.",
            advice=HOW_TO_GET_ONE,
        )
    return Sdk(root=root, versions=_versions(root), simulated=(root / _SIMULATED_MARKER).exists())


def _versions(root: Path) -> dict[str, str]:
    """Versions by package: of its file, else what the SDK's own tool says."""
    found = {package: _base_version(root / "versions" / f"{package}.xml") for package in _PACKAGES}
    for package in _PACKAGES:
        found[package] = found[package] or _told_version(root / "tools" / "qaic-version-util", package=package)
    return {package: version for package, version in found.items() if version}


def _base_version(path: Path) -> str:
    """The text of the first ``base_version`` element in any name space, or nothing when there is none."""
    try:
        elements = ElementTree.parse(path).getroot().iter()  # noqa: S314  the SDK's programs are run too
    except (OSError, ElementTree.ParseError):
        return ""
    texts = ((element.text or "").strip() for element in elements if element.tag.rpartition("}")[2] == "base_version")
    return next(texts, "")


def _told_version(tool: Path, *, package: str) -> str:
    """The version that ``qaic-version-util`` prints about a package, or nothing.

    It has been seen to print ``apps:AIC.1.6.80``, and ``not found`` after the colon. Source:
    https://github.com/krai/ck-qaic (docker/README.md).
    """
    try:
        answer = asking.ask([str(tool), f"--{package}"], limit_s=_ASKING_S)
    except Infrastructure:
        return ""
    found = re.search(rf"^(?:{package}:)?[A-Za-z. ]*(\d+(?:\.\d+)+)", answer.text, re.MULTILINE)
    return found[1] if found is not None and answer.exit_code == 0 else ""
