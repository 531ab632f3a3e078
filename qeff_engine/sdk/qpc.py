"""Asks the SDK's ``qaic-qpc`` whether a program is whole, and what it needs. Standard library only."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from qeff_engine.errors import CompilerCrash
from qeff_engine.program import BINARY
from qeff_engine.sdk import asking
from qeff_engine.sdk.location import Sdk

_LIMIT_S = 300.0  # it reads the whole file, which may have tens of gigabytes
_USAGE = re.compile(r"usage|unknown|invalid option", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What a program needs of each of its devices, as far as the tool says it.

    Attributes:
        num_cores: documented by the vendor; None when the tool does not say it.
        dram_bytes: over all devices; only the simulated tool is known to say it.
    """

    num_cores: int | None = None
    dram_bytes: int | None = None


def validated(sdk: Sdk, *, program: Path) -> Needs:
    """What a program in a directory needs; nothing is known when the SDK has no such tool, or an older one.

    Raises:
        CompilerCrash: the tool finds that the program is damaged.
        Infrastructure: the tool cannot be started, or hangs.
    """
    tool = sdk.root / "tools" / "qaic-qpc"
    if not tool.is_file():
        return Needs()
    answer = asking.ask([str(tool), "validate", "-i", str(program / BINARY)], limit_s=_LIMIT_S)
    if answer.exit_code != 0 and not any(map(_USAGE.search, answer.text.splitlines())):
        said = answer.last_line or "it cannot be read"
        raise CompilerCrash(
            f"The compiler ended with exit code 0 but left a damaged program: {said}",
            advice="It is a fault of the compiler or of the disk: compile again, and see the kernel's log.",
        )
    return Needs(
        num_cores=_number(r"Number of NSP required\s*:\s*(\d+)", answer.text),
        dram_bytes=_number(r"DDR required\s*:\s*(\d+) bytes", answer.text),
    )


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None
