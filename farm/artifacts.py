"""The artifact store: immutable file trees addressed by their content, in a local directory.

::

    STORE/objects/<dd>/<digest>/tree/           the files as a stage left them
    STORE/objects/<dd>/<digest>/manifest.json   path, SHA-256 and size of each
    STORE/objects/<dd>/<digest>/looks.json      inode, size and time of each when its content was last read
    STORE/digests/                              SHA-256 of big files by inode, see farm.manifest
    STORE/tmp/                                  trees in the making

An object appears by one rename, complete, or not at all. Hard-linked files keep their link and their mode: a
checkpoint of the user's is never copied and never changed. Rows about artifacts are written elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from farm.errors import StorageFault
from farm.manifest import DigestCache, Look, Manifest, survey, write_atomically
from farm.records import ArtifactRecord

_DIGEST = re.compile(r"[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


class Store:
    """A store in a directory, which is made at the first writing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._objects = root / "objects"
        self._tmp = root / "tmp"
        self._digests = DigestCache(root / "digests")

    def new_tree(self, *, name: str = "tree") -> Path:
        """An empty directory of its own for a stage to fill.

        Args:
            name: for people who look into the directory, such as ``12.1`` for attempt 1 of job 12.
        """
        with self._faults("make a directory in"):
            self._tmp.mkdir(parents=True, exist_ok=True)
            wrapper = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._tmp))
            tree = wrapper / "tree"
            tree.mkdir()
        return tree

    def publish(self, tree: Path, *, stage: str) -> ArtifactRecord:
        """Make a tree of :meth:`new_tree` an artifact; the tree is gone afterwards, also when it fails.

        Args:
            tree: directory from :meth:`new_tree`.
            stage: kind of work that filled it.

        Raises:
            StorageFault: the disk is full or read-only, or the tree holds more than files and directories.
        """
        wrapper = self._own(tree)
        try:
            with self._faults("write"):
                manifest, looks = survey(tree, cache=self._digests, durable=True)
                write_atomically(wrapper / "manifest.json", manifest.to_json())
                write_atomically(wrapper / "looks.json", _looks_json(looks))
                _seal(tree)
                self._install(wrapper, digest=manifest.digest)
        finally:
            self.discard(tree)
        return ArtifactRecord(
            digest=manifest.digest, stage=stage, num_bytes=manifest.num_bytes, num_files=len(manifest.files)
        )

    def discard(self, tree: Path) -> None:
        """Delete a tree of :meth:`new_tree` if it is still there."""
        wrapper = self._own(tree)
        with self._faults("delete from"):
            remove_tree(wrapper)

    def path(self, digest: str) -> Path:
        """The directory of an artifact's files, whose contents are as they were published.

        Files that look as they did when they were last read are not read again.

        Raises:
            StorageFault: there is no such artifact, or a file of it is missing or has changed.
        """
        wrapper = self._object(digest)
        with self._faults("read"):
            if not wrapper.is_dir():
                raise StorageFault(
                    f"The store {self.root} has no artifact {digest[:12]}, though the database knows it. "
                    "Was the store cleared? `farm retry` makes it again."
                )
            self._verify(wrapper, digest=digest)
        return wrapper / "tree"

    def clear_tmp(self) -> int:
        """Delete all trees in the making and return how many: only for when no stage of this store runs."""
        with self._faults("delete from"):
            if not self._tmp.is_dir():
                return 0
            leftovers = [Path(entry.path) for entry in os.scandir(self._tmp)]
            for leftover in leftovers:
                remove_tree(leftover)
        return len(leftovers)

    def _own(self, tree: Path) -> Path:
        """The wrapper of a tree that this store made; anything else is refused."""
        wrapper = tree.parent
        if tree.name != "tree" or wrapper.parent != self._tmp or wrapper.is_symlink():
            raise StorageFault(f"{tree} is not a tree in the making of the store {self.root}.")
        return wrapper

    def _object(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise StorageFault(f"'{digest}' is not an artifact's digest, expected 64 hexadecimal digits.")
        return self._objects / digest[:2] / digest

    def _install(self, wrapper: Path, *, digest: str) -> None:
        """Move a finished wrapper to its place; a sound artifact that is there already stays."""
        target = self._object(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            if target.exists() and self._is_sound(target, digest=digest):
                return
            try:
                wrapper.rename(target)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                self._set_aside(target)
            else:
                _sync_directory(target.parent)
                return
        raise StorageFault(f"The artifact {digest[:12]} in {self.root} is replaced by others again and again.")

    def _is_sound(self, target: Path, *, digest: str) -> bool:
        try:
            self._verify(target, digest=digest)
        except (StorageFault, OSError):
            return False
        return True

    def _set_aside(self, target: Path) -> None:
        """Take a damaged artifact out of its place, so that a new one can go there."""
        grave = Path(tempfile.mkdtemp(prefix="damaged-", dir=self._tmp))
        with contextlib.suppress(FileNotFoundError):
            target.rename(grave / "object")
        remove_tree(grave)

    def _verify(self, wrapper: Path, *, digest: str) -> None:
        """Raise :class:`StorageFault` unless every file is as published; remember the looks of those read again."""
        manifest, looks = _load(wrapper)
        if manifest.digest != digest:
            raise StorageFault(f"The manifest of artifact {digest[:12]} is damaged. `farm retry` makes it again.")
        changed = False
        for entry in manifest.files:
            path = wrapper / "tree" / entry.path
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            except OSError as error:
                raise _damaged(digest, path=entry.path, why=f"cannot be opened ({error.strerror})") from error
            try:
                status = os.fstat(descriptor)
                look = Look.of(status)
                if look == looks.get(entry.path):
                    continue
                if self._digests.sha256_of(descriptor, status=status) != entry.sha256:
                    raise _damaged(digest, path=entry.path, why="was changed after it was published")
            finally:
                os.close(descriptor)
            looks[entry.path] = look
            changed = True
        if changed:
            with contextlib.suppress(OSError):  # a store that is read-only by now can still be read
                write_atomically(wrapper / "looks.json", _looks_json(looks))

    @contextlib.contextmanager
    def _faults(self, verb: str) -> Iterator[None]:
        """Turn what the operating system says into words about the store."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                cure = "The disk is full: free some space there, or set FARM_STORE to another disk."
            elif error.errno in _DENIED:
                cure = "It is read-only or belongs to somebody else: correct that, or set FARM_STORE elsewhere."
            else:
                cure = "Check the disk and the kernel's log."
            raise StorageFault(f"Cannot {verb} the artifact store {self.root}: {error}. {cure}") from error


def _load(wrapper: Path) -> tuple[Manifest, dict[str, Look]]:
    try:
        manifest = Manifest.from_json((wrapper / "manifest.json").read_text(encoding="utf-8"))
        looks = json.loads((wrapper / "looks.json").read_text(encoding="utf-8"))
        return manifest, {name: Look(**fields) for name, fields in looks.items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise StorageFault(
            f"The artifact {wrapper.name[:12]} is damaged: {error}. `farm retry` makes it again."
        ) from error


def _damaged(digest: str, *, path: str, why: str) -> StorageFault:
    return StorageFault(
        f"The file '{path}' of artifact {digest[:12]} {why}. If it is a hard link to a model of yours that you wrote "
        "to, submit the model again; else `farm retry` makes the artifact again."
    )


def _looks_json(looks: dict[str, Look]) -> str:
    return json.dumps({name: dataclasses.asdict(look) for name, look in looks.items()})


def _seal(tree: Path) -> None:
    """Take the right to write from directories and from the files that nobody else links to; sync directories."""
    for folder, _, names in os.walk(tree, topdown=False):
        for name in names:
            path = Path(folder, name)
            if path.stat(follow_symlinks=False).st_nlink == 1:
                path.chmod(0o444)
        Path(folder).chmod(0o555)
        _sync_directory(Path(folder))


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Delete a file, or a directory with whatever is write-protected in it; never follows a link."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
        return
    if not path.is_dir():
        return
    for folder, _, _ in os.walk(path):
        Path(folder).chmod(0o700)
    shutil.rmtree(path)
