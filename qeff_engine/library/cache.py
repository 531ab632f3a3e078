"""Results of stages, kept by what the work is: a second call with the same content does nothing.

::

    <root>/<stage>/<key>/artifact/...    what the stage left
    <root>/<stage>/<key>/entry.json      digest, figures, and size and time of every file
    <root>/<stage>/<key>.partial/        a stage at work, or the remains of one that was killed
    <root>/<stage>/<key>.lock            held while a stage is at work

An entry appears by one rename, so it is there complete or not at all. The key is made of the stage and its version, the
spec, the digests of the inputs and the versions of the toolchain; a path is never part of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from qeff_engine import actions, events, files, pipeline, spec, toolchain
from qeff_engine.errors import Infrastructure
from qeff_engine.sdk import location
from qeff_engine.stage import AS_RESOLVED, StageContext

HOME_VARIABLE = "QEFF_HOME"
_ENTRY = "entry.json"
_ARTIFACT = "artifact"
_LOG = logging.getLogger("qeff_engine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished stage.

    Attributes:
        key: digest of what the work is.
        digest: digest of what it made; the next stage's key is made of it.
        directory: the artifact, read-only.
        figures: what the stage measured when it ran.
        cached: it was there already.
    """

    key: str
    digest: str
    directory: Path
    figures: dict[str, Any]
    cached: bool


def default_root() -> Path:
    """``QEFF_HOME`` where it is set, else the user's cache directory (``XDG_CACHE_HOME`` counts)."""
    home = os.environ.get(HOME_VARIABLE)
    return Path(home).expanduser().absolute() if home else platformdirs.user_cache_path("qeff_engine")


def tell_log(event: events.Event) -> None:
    """An :data:`~qeff_engine.events.Emit` that writes to the logger ``qeff_engine``."""
    level = logging.DEBUG if event.kind == "log" else logging.INFO
    _LOG.log(level, event.message)


class StageCache:
    """The cache below one directory. Several processes may use it at a time."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = default_root() if root is None else root.absolute()

    def run(
        self,
        stage_spec: spec.StageSpec,
        *,
        inputs: Mapping[str, Entry] | None = None,
        sdk_root: Path | None = None,
        compiler_limit_s: float | None = None,
        emit: events.Emit = tell_log,
    ) -> Entry:
        """The result of a stage: the kept one, or that of running it now.

        A process that asks for what another is working on waits for it.

        Raises:
            EngineError: the stage failed; nothing is kept then.
        """
        inputs = {} if inputs is None else inputs
        key = self._key(stage_spec, inputs=inputs, sdk_root=sdk_root)
        home = self.root / stage_spec.STAGE / key
        found = _read(home, key=key)
        if found is not None:
            return found
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(home.with_suffix(".lock")):
                found = _read(home, key=key)
                if found is not None:
                    return found
                context = StageContext(
                    out=home.with_suffix(".partial") / _ARTIFACT,
                    work=home.with_suffix(".partial") / "work",
                    inputs={name: entry.directory for name, entry in inputs.items()},
                    emit=emit,
                    sdk_root=sdk_root,
                    trust_remote_code=AS_RESOLVED,
                    compiler_limit_s=compiler_limit_s,
                )
                return _make(stage_spec, context=context, home=home)
        except OSError as error:
            raise Infrastructure(
                f"The cache at {self.root} cannot be written: {error}.",
                advice=f"Free some space or point {HOME_VARIABLE} to another directory.",
            ) from error

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory for a while, on the cache's own disk so that links into it work."""
        parent = self.root / "scratch"
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent) as directory:
            yield Path(directory)

    def adopt(self, directory: Path) -> Entry:
        """An artifact that was not made here as an input; all of its files are read once."""
        digest = tree_digest(directory)
        return Entry(key=digest, digest=digest, directory=directory, figures={}, cached=True)

    def _key(self, stage_spec: spec.StageSpec, *, inputs: Mapping[str, Entry], sdk_root: Path | None) -> str:
        key, _ = actions.action_key(
            stage_spec.STAGE,
            fields=stage_spec.to_json(),
            input_digests={name: entry.digest for name, entry in inputs.items()},
            toolchain=toolchain.versions(_sdk(sdk_root)),
        )
        return key


def _sdk(root: Path | None) -> location.Sdk | None:
    """The SDK, where there is one: a stage that needs none has a key without it."""
    try:
        return location.find(root)
    except Infrastructure:
        return None


def tree_digest(directory: Path) -> str:
    """SHA-256 over the relative paths and contents of all files below a directory."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return spec.digest([[path.relative_to(directory).as_posix(), files.sha256_of(path)] for path in paths])


def place(entry: Entry, *, directory: Path, name: str) -> Path:
    """The artifact as ``directory/name``, by links where possible; what is there complete already is left alone."""
    target = directory.absolute() / name
    if target.is_dir():
        return target
    partial = target.with_name(f".{name}.{os.getpid()}.partial")
    try:
        for path in entry.directory.rglob("*"):
            if path.is_file():
                files.link_or_copy(path, partial / path.relative_to(entry.directory))
        partial.rename(target)
    except OSError as error:
        if not target.is_dir():
            raise Infrastructure(f"{target} cannot be written: {error}.", advice="Name another directory.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _make(stage_spec: spec.StageSpec, *, context: StageContext, home: Path) -> Entry:
    """Run a stage and publish what it left; the lock is held."""
    partial = context.out.parent
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)  # an entry whose files have changed
    try:
        for directory in (context.out, context.work):
            directory.mkdir(parents=True)
        result = pipeline.run_stage(stage_spec, context=context)
        shutil.rmtree(context.work)
        # Only what resolve makes is known by content; the other stages' results follow from their keys.
        digest = tree_digest(context.out) if stage_spec.STAGE is spec.Stage.RESOLVE else home.name
        fields = {"digest": digest, "figures": result.figures, "files": _signatures(context.out)}
        (partial / _ENTRY).write_text(json.dumps(fields, indent=1) + "\n")
        _flush(partial)
        partial.rename(home)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Entry(key=home.name, digest=digest, directory=home / _ARTIFACT, figures=dict(result.figures), cached=False)


def _read(home: Path, *, key: str) -> Entry | None:
    """The entry at ``home``, or None when there is none or one of its files is not what it was.

    Checkpoint files are hard links: whoever rewrites one in place changes it here too, which its time shows.
    """
    try:
        fields = json.loads((home / _ENTRY).read_text())
    except (OSError, ValueError):
        return None
    artifact = home / _ARTIFACT
    if _signatures(artifact) != fields["files"]:
        return None
    return Entry(key=key, digest=fields["digest"], directory=artifact, figures=fields["figures"], cached=True)


def _signatures(directory: Path) -> dict[str, list[int]]:
    """Size in bytes and time of modification in ns of every file, by relative path."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            status = path.stat()
            found[path.relative_to(directory).as_posix()] = [status.st_size, status.st_mtime_ns]
    return found


def _flush(directory: Path) -> None:
    """Write to the disk what was written here; a hard-linked file has been there before."""
    for path in directory.rglob("*"):
        if path.is_file() and path.stat().st_nlink == 1:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
