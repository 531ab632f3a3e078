"""Files as the stages place them: links before copies, digests once per content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qeff_engine.errors import InvalidInput


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


def save_description(directory: Path, name: str, *, version: int, fields: Mapping[str, Any]) -> None:
    """Write an artifact's description as JSON, with the version of its layout."""
    (directory / name).write_text(json.dumps({"format": version, **fields}, indent=1) + "\n")


def load_description(directory: Path, name: str, *, version: int, what: str, advice: str) -> dict[str, Any]:
    """The fields of an artifact's description.

    Args:
        directory: the artifact.
        name: file of the description.
        version: of the layout that the caller knows.
        what: what the artifact should be, for the message.
        advice: how to get one.

    Raises:
        InvalidInput: there is none, or it has another version.
    """
    path = directory / name
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{directory} is not {what}: {error}.", advice=advice) from error
    if not isinstance(fields, dict):
        raise InvalidInput(f"{path} is a JSON {type(fields).__name__}, expected an object.", advice=advice)
    found = fields.pop("format", None)
    if found != version:
        raise InvalidInput(f"{path} has format {found}, expected {version}.", advice=advice)
    return fields
