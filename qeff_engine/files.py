"""Files as the stages place them: links before copies, digests once per content."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``: a hard link where the file system allows it, else a copy.

    Symbolic links in ``source`` are followed first, since ONNX Runtime refuses external data behind a link that
    leaves the model's directory.
    """
    real = source.resolve(strict=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
