"""Code that comes with a checkpoint: which files it is, the digest that consent to it names, what configs name of it.

Consent is always to exact bytes. The digest is a SHA-256 over the names and the contents of all files that can be
imported, wherever they lie; on the hub, a commit stands for it, and nothing that can move. A snapshot has code only
with consent, and then :data:`MANIFEST` says so. Nothing is run here. Standard library only.

The entries of ``auto_map`` are described in https://huggingface.co/docs/transformers/custom_models: the name of an auto
class, and ``[organization/name--]module.Class`` or, for tokenizers, a slow and a fast one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qeff_engine import files, spec
from qeff_engine.errors import InvalidInput, Unsupported

MANIFEST = "remote_code.json"
OPTION = "--trust-remote-code"
READ_FIRST = "Read the code first: it runs with all rights of the user that the stage runs as."
_FORMAT = 1
_CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_REFERENCE = re.compile(r"(?:(?P<repository>[^-]+(?:-[^-]+)*)--)?(?P<module>[^\W\d]\w*)\.(?P<name>[^\W\d]\w*)")
_MOST_FILES = 256
_MOST_BYTES = 4 << 20  # of all files together; the largest model of transformers has a tenth of it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """A class in one of the files.

    Attributes:
        module: name of a file beside ``config.json``, without ``.py``.
        name: of the class.
    """

    module: str
    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Code:
    """The code of a checkpoint.

    Attributes:
        contents: bytes of each file that can be imported, by its path relative to the checkpoint with ``/``.
        references: what configs name, by the name of the auto class: one, or a slow and a fast one of which either may
            be None.
        repository: the hub id that configs name as the place of these files; empty when they name none.
    """

    contents: Mapping[str, bytes]
    references: Mapping[str, tuple[Reference | None, ...]]
    repository: str = ""

    @functools.cached_property
    def digest(self) -> str:
        """What consent names: ``sha256:`` and 64 hexadecimal digits."""
        return f"sha256:{spec.digest(self._digests())}"

    def write(self, out: Path) -> None:
        """Put the files and the manifest into a snapshot. The bytes that were looked at are written, not linked."""
        for name, content in self.contents.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)
        fields = {"digest": self.digest, "repository": self.repository, "files": self._digests()}
        files.save_description(out, MANIFEST, version=_FORMAT, fields=fields)

    def _digests(self) -> dict[str, str]:
        return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(self.contents.items())}


def read(directory: Path, *, repository: str = "") -> Code:
    """The code of a checkpoint directory.

    Args:
        directory: the checkpoint.
        repository: hub id that it comes from; empty when it is not known.

    Raises:
        InvalidInput: there is none, it is too large, a link leads outside, or configs name what is not there.
        Unsupported: configs name the code of another repository.
    """
    contents = dict(_contents(directory))
    entries = dict(_auto_map(directory))
    if not entries:
        raise InvalidInput(
            f"No config of {directory} has an auto_map, so nothing of its code would be run.",
            advice=f"Leave {OPTION} away.",
        )
    references = {
        auto: tuple(_reference(entry, auto=auto, repository=repository, contents=contents) for entry in found)
        for auto, found in entries.items()
    }
    is_named = any("--" in entry for found in entries.values() for entry in found if isinstance(entry, str))
    return Code(contents=contents, references=references, repository=repository if is_named else "")


def has_code(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` names code that comes with the checkpoint."""
    return bool(config.get("auto_map"))


def of_snapshot(snapshot: Path) -> Code | None:
    """The code of a snapshot that the resolve stage has made; None when it was made without consent.

    Raises:
        InvalidInput: its files are not those that were consented to.
    """
    if not (snapshot / MANIFEST).is_file():
        return None
    said = _manifest(snapshot)
    code = read(snapshot, repository=str(said.get("repository", "")))
    require_equal(code, consent=str(said.get("digest")), place=str(snapshot))
    return code


def consented(directory: Path, *, consent: str) -> Code | None:
    """The code of any checkpoint directory that may run by a user's word; None where there is neither code nor consent.

    Args:
        directory: the checkpoint; the digest that a manifest in it says counts for nothing.
        consent: digest of the code, or nothing.

    Raises:
        InvalidInput: the directory's code is another, or there is code of a snapshot and no consent.
    """
    has_manifest = (directory / MANIFEST).is_file()
    if not consent and not has_manifest:
        return None
    code = read(directory, repository=str(_manifest(directory).get("repository", "")) if has_manifest else "")
    if not consent:
        raise not_consented(str(directory), consent=code.digest)
    require_equal(code, consent=consent, place=str(directory))
    return code


def require_equal(code: Code, *, consent: str, place: str) -> None:
    """Refuse code that is not the one that was consented to.

    Raises:
        InvalidInput: the message says both digests.
    """
    if code.digest != consent:
        raise InvalidInput(
            f"Consent was given to code with the digest {consent}, and the code in {place} has {code.digest}.",
            advice=f"It has changed, or is another model's. {READ_FIRST} Then give {OPTION} {code.digest}.",
        )


def not_consented(place: str, *, consent: str) -> InvalidInput:
    """The refusal of a checkpoint that needs its own code, with the option that would give consent."""
    return InvalidInput(
        f"{place} needs code that comes with it, which is not run without consent to exactly this code.",
        advice=f"{READ_FIRST} Then give {OPTION} {consent} (in Python, trust_remote_code='{consent}').",
    )


def _manifest(snapshot: Path) -> dict[str, Any]:
    return files.load_description(
        snapshot, MANIFEST, version=_FORMAT, what="a snapshot with code", advice="Resolve the model again."
    )


def _contents(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file that an import can reach, sorted by name."""
    left, found = _MOST_BYTES, _paths(directory)
    if len(found) > _MOST_FILES:
        raise InvalidInput(f"{directory} has {len(found)} files of Python code, expected at most {_MOST_FILES}.")
    for path in found:
        _require_inside(path, directory=directory)
        with path.open("rb") as stream:
            content = stream.read(left + 1)
        left -= len(content)
        if left < 0:
            raise InvalidInput(
                f"The Python code in {directory} has more than {_MOST_BYTES >> 20} MiB.",
                advice="Move what is no code of the model out of it.",
            )
        yield path.relative_to(directory).as_posix(), content


def _paths(directory: Path) -> list[Path]:
    """Regular files whose names can stand in an import; directories behind links are not entered."""
    found = []
    for place, folders, names in os.walk(directory):
        folders[:] = [folder for folder in folders if folder.isidentifier()]
        for name in names:
            path = Path(place, name)
            if path.suffix == ".py" and path.stem.isidentifier() and path.is_file():
                found.append(path)
    return sorted(found, key=lambda path: path.relative_to(directory).as_posix())


def _require_inside(path: Path, *, directory: Path) -> None:
    """Refuse a link that leads out of the checkpoint; that of a hub's cache is snapshot and blobs together."""
    if not path.is_symlink():
        return
    roots = [directory.resolve()]
    if directory.parent.name == "snapshots":
        roots.append(directory.parent.parent.resolve() / "blobs")
    target = path.resolve()
    if not any(target.is_relative_to(root) for root in roots):
        raise InvalidInput(
            f"{path} is a link to {target}, expected a file within {directory}.", advice="Put the file itself there."
        )


def _auto_map(directory: Path) -> Iterator[tuple[str, tuple[object, ...]]]:
    """The entries of all configs by auto class."""
    for name in _CONFIGS:
        path = directory / name
        if not path.is_file():
            continue
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InvalidInput(f"{path} is not JSON: {error}.", advice="Fetch the file again.") from error
        found = fields.get("auto_map") if isinstance(fields, dict) else None
        if isinstance(found, list):  # as tokenizers had it once
            found = {"AutoTokenizer": found}
        if found is not None and not isinstance(found, dict):
            raise InvalidInput(f"{path} has the auto_map {found!r}, expected an object.")
        for auto, entry in (found or {}).items():
            yield auto, tuple(entry) if isinstance(entry, list) else (entry,)


def _reference(entry: object, *, auto: str, repository: str, contents: Mapping[str, bytes]) -> Reference | None:
    """The class that an entry names."""
    if entry is None:
        return None
    match = _REFERENCE.fullmatch(entry) if isinstance(entry, str) else None
    if match is None:
        raise InvalidInput(f"auto_map names {entry!r} for {auto}, expected module.Class of a file beside config.json.")
    other = match["repository"]
    if other and other != repository:
        raise Unsupported(
            f"auto_map names {entry} for {auto}: the code is in another repository, {other}, and consent names one "
            "commit.",
            advice=f"Put the .py files of {other} beside config.json in a directory, take '{other}--' out of auto_map, "
            "and name that directory.",
        )
    if f"{match['module']}.py" not in contents:
        raise InvalidInput(f"auto_map names {entry} for {auto}, and there is no file {match['module']}.py.")
    return Reference(module=match["module"], name=match["name"])
