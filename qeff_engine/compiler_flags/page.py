"""Writes docs/compiler-flags.md from the table: ``python -m qeff_engine.compiler_flags.page`` (``make docs``)."""

from __future__ import annotations

import sys
from pathlib import Path

from qeff_engine.compiler_flags.table import GROUPS, Flag

PAGE = Path(__file__).parents[2] / "docs" / "compiler-flags.md"
_HEAD = """\
# Flags of the compiler

<!-- Written by `make docs` from `qeff_engine/compiler_flags/table.py`; change that. -->

Every flag of `qaic-compile` and `qaic-exec` that is documented or was seen in published command lines. A range
without an upper end has none that is documented, and without a default the compiler chooses.

Single stages and the farm take them as `--mos`, `--ols` and `--compiler-option NAME=VALUE`, the library as arguments
of these names and as `compiler_options={"NAME": VALUE}`; underscores count as dashes. Values are checked, and so is
what goes together: `mos` up to the number of cores, `mdts-mos` with several devices, `aic-depth-first-mem` with
`aic-enable-depth-first`, `percentile-calibration-value` with its calibration, `sdp-cluster-sizes` neither with
several devices, depth-first scheduling nor `stats-level` 40 to 60, `convert-to-quantize` without profiles,
`host-preproc` without `aic-preproc`, at most 16 cores of an AI 100. Neither order nor spelling makes another request;
of a file the text counts, not the path. Files that the compiler writes come to lie beside the program.

A flag that is not in the table goes through `--compiler-flag -NAME=VALUE` (in a spec: `unlisted_flags`). Nothing
checks it; it stands in the spec, in labels and reports, and in the recorded command.
"""


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for title, flags in GROUPS.items():
        last = "what to do" if flags[0].instead else "default"
        parts.append(f"## {title}\n")
        parts.append(_table(("flag", "values", "meaning", last), [_row(flag) for flag in flags]))
    return "\n".join(parts)


def _row(flag: Flag) -> tuple[str, str, str, str]:
    names = " or ".join(f"`-{name}`" for name in (flag.name, *flag.aliases))
    about = f"{flag.about} (`{flag.tool}` only)" if flag.tool else flag.about
    return names, flag.kind.expected, about, flag.instead or flag.default


def _table(head: tuple[str, ...], rows: list[tuple[str, str, str, str]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> int:
    """Command line."""
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
