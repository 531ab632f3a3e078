"""A checkpoint directory as a snapshot: the files that matter, linked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qeff_engine import checkpoint, files
from qeff_engine.errors import InvalidInput
from qeff_engine.spec import ResolveSpec
from qeff_engine.stage import StageContext


def fetch(spec: ResolveSpec, context: StageContext) -> dict[str, Any]:
    """Link the files of a directory into ``context.out``.

    Raises:
        InvalidInput: the directory is not a whole checkpoint, or changed since it was asked for.
    """
    source = checkpoint.inspect(spec.source)
    if spec.fingerprint and source.fingerprint != spec.fingerprint:
        raise InvalidInput(
            f"The files in {spec.source} changed after they were asked for.", advice="Submit again, or retry."
        )
    link(Path(source.location), names=list(source.files), out=context.out)
    return {}


def link(directory: Path, *, names: list[str], out: Path) -> None:
    """Put the named files of ``directory`` into ``out``."""
    for name in names:
        files.link_or_copy(directory / name, out / name)
