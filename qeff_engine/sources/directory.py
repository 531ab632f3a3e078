"""A checkpoint directory as a snapshot: the files that matter, linked, and its code with consent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qeff_engine import checkpoint, code_files, files
from qeff_engine.errors import InvalidInput
from qeff_engine.spec import ResolveSpec
from qeff_engine.stage import StageContext


def fetch(spec: ResolveSpec, context: StageContext) -> dict[str, Any]:
    """Link the files of a directory into ``context.out``.

    Raises:
        InvalidInput: the directory is not a whole checkpoint, or changed since it was asked for, or its code is not
            that to which consent was given.
    """
    source = checkpoint.inspect(spec.source, trust_remote_code=spec.trust_remote_code)
    if spec.fingerprint and source.fingerprint != spec.fingerprint:
        raise InvalidInput(
            f"The files in {spec.source} changed after they were asked for.", advice="Submit again, or retry."
        )
    directory = Path(source.location)
    link(directory, names=list(source.files), out=context.out)
    if not spec.trust_remote_code:
        return {}
    code = code_files.read(directory)
    code_files.require_equal(code, consent=spec.trust_remote_code, place=spec.source)
    return taken_along(code, out=context.out)


def taken_along(code: code_files.Code, *, out: Path) -> dict[str, Any]:
    """Put code into a snapshot, after consent; the figures that tell of it."""
    code.write(out)
    return {"remote_code": code.digest, "num_code_files": len(code.contents)}


def link(directory: Path, *, names: list[str], out: Path) -> None:
    """Put the named files of ``directory`` into ``out``."""
    for name in names:
        files.link_or_copy(directory / name, out / name)
