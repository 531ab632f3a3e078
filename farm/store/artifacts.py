"""The artifact store: immutable file trees addressed by their content, in a local directory.

::

    STORE/objects/<dd>/<digest>/tree/           the files as a stage left them
    STORE/objects/<dd>/<digest>/manifest.json   path, SHA-256 and size of each
    STORE/objects/<dd>/<digest>/looks.json      inode, size and time of each, and when their content was last read
    STORE/digests/                              SHA-256 of big files by inode, see farm.store.manifest
    STORE/damaged/<digest>.<time>/              objects that were not as published, out of the way
    STORE/locks/                                who makes, mends or deletes an object
    STORE/tmp/                                  trees in the making

An object appears by one rename, complete, or not at all. Hard-linked files keep their link and their mode: a
checkpoint of the user's is never copied and never changed. Rows about artifacts are written elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from farm.errors import DamagedArtifact, StorageFault
from farm.records import ArtifactRecord
from farm.store import verification
from farm.store.manifest import Blob, DigestCache, Manifest, survey, write_atomically

REREAD_AFTER_S = 30 * 86400.0  # a disk may spoil a file without changing its look

_DIGEST = re.compile(r"[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)


class Store:
    """A store in a directory, which is made at the first writing.

    Args:
        root: the directory.
        reread_after_s: files are read again, whatever they look like, when that was last done so long ago.
    """

    def __init__(self, root: Path, *, reread_after_s: float = REREAD_AFTER_S) -> None:
        self.root = root
        self._objects = root / "objects"
        self._damaged = root / "damaged"
        self._tmp = root / "tmp"
        self._digests = DigestCache(root / "digests")
        self._reread_after_s = reread_after_s

    @property
    def name(self) -> str:
        """Where it is, for people."""
        return str(self.root)

    def new_tree(self, *, name: str = "tree") -> Path:
        """An empty directory of its own for a stage to fill.

        Args:
            name: for people who look into the directory, such as ``12.1`` for attempt 1 of job 12.
        """
        with self.faults("make a directory in"):
            wrapper = self._new_wrapper(name)
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
            with self.faults("write"):
                manifest, looks = survey(tree, cache=self._digests, durable=True)
                write_atomically(wrapper / "manifest.json", manifest.to_json())
                verification.write_looks(wrapper, looks, read_at=time.time())
                seal(tree)
                self._install(wrapper, digest=manifest.digest)
        finally:
            self.discard(tree)
        return ArtifactRecord(
            digest=manifest.digest, stage=stage, num_bytes=manifest.num_bytes, num_files=len(manifest.files)
        )

    def discard(self, tree: Path) -> None:
        """Delete a tree of :meth:`new_tree` if it is still there."""
        wrapper = self._own(tree)
        with self.faults("delete from"):
            remove_tree(wrapper)

    def path(self, digest: str) -> Path:
        """The directory of an artifact's files, whose contents are as they were published.

        Names and looks of the files are always compared with what was published; a file is read again when it looks
        different, and all are when that was last done long ago.

        Raises:
            DamagedArtifact: there is no such artifact, or it is not as published; it is out of the way then.
            StorageFault: the store cannot be read.
        """
        wrapper = self.wrapper(digest)
        with self.faults("read"):
            try:
                self.verify(digest)
            except DamagedArtifact:
                if not self._mend(wrapper, digest=digest):
                    raise
        return wrapper / "tree"

    def verify(self, digest: str, *, reread_after_s: float | None = None) -> Manifest:
        """The manifest of an artifact that is as published. What is not stays where it is.

        Args:
            digest: the artifact.
            reread_after_s: other than the store's; 0 reads everything.

        Raises:
            DamagedArtifact: there is no such artifact, or it is not as published.
            OSError: it cannot be read.
        """
        wrapper = self.wrapper(digest)
        if not wrapper.is_dir():
            raise DamagedArtifact(
                f"The store {self.root} has no artifact {digest[:12]}, though the database knows it. "
                "Was the store cleared? `farm retry` makes it again.",
                digest=digest,
            )
        limit_s = self._reread_after_s if reread_after_s is None else reread_after_s
        return verification.verify(wrapper, digest=digest, digests=self._digests, since=time.time() - limit_s)

    def digests(self) -> Iterator[str]:
        """The artifacts that are there, sound or not."""
        if self._objects.is_dir():
            for folder in sorted(self._objects.iterdir()):
                yield from sorted(path.name for path in folder.iterdir() if _DIGEST.fullmatch(path.name))

    def blobs(self, digest: str) -> Iterator[Blob]:
        """The bytes that an artifact's files name, an entry per file."""
        for folder, _, files in os.walk(self.wrapper(digest) / "tree"):
            for name in files:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    status = Path(folder, name).stat(follow_symlinks=False)
                    inode = f"{status.st_dev:x}-{status.st_ino:x}"
                    yield Blob(id=inode, num_bytes=status.st_size, num_names=status.st_nlink)

    def touched_at(self, digest: str) -> float:
        """When an artifact was last published, in seconds since the epoch by the disk's clock; 0 if it is not there."""
        try:
            return self.wrapper(digest).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def remove(self, digest: str, *, untouched_since: float, confirmed: Callable[[], bool] = lambda: True) -> bool:
        """Delete an artifact unless it was published after a time; whether it is gone.

        Args:
            digest: the artifact.
            untouched_since: by the disk's clock.
            confirmed: asked while nobody can publish it: whether it is still to go.

        Raises:
            StorageFault: the store is read-only.
        """
        wrapper = self.wrapper(digest)
        with self.faults("delete from"):
            with self.lock(digest):
                touched_at = self.touched_at(digest)
                if not touched_at:
                    return True
                if touched_at > untouched_since or not confirmed():
                    return False
                grave = self._new_wrapper("removed")
                wrapper.rename(grave / "object")
            remove_tree(grave)
        return True

    def set_aside(self, digest: str) -> None:
        """Take an artifact out of its place, so that a new one can go there.

        Raises:
            StorageFault: the store is read-only.
        """
        with self.faults("move in"), self.lock(digest), contextlib.suppress(FileNotFoundError):
            self._set_aside(self.wrapper(digest))

    def sweep(self, *, untouched_since: float) -> int:
        """Delete bytes that no artifact names any more; how many. In a directory they go with their last name."""
        del untouched_since
        return 0

    @contextlib.contextmanager
    def lock(self, digest: str, *, kind: str = "objects") -> Iterator[None]:
        """Be the only one, on all hosts that share the directory, who makes, mends or deletes something.

        Args:
            digest: of an artifact, or of what ``kind`` says.
            kind: whose owner may hold a lock of another kind, in one order.
        """
        import filelock

        path = self.root / "locks" / f"{kind}-{digest[:2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path):
            yield

    def _new_wrapper(self, name: str) -> Path:
        self._tmp.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._tmp))

    def _own(self, tree: Path) -> Path:
        """The wrapper of a tree that this store made; anything else is refused."""
        wrapper = tree.parent
        if tree.name != "tree" or wrapper.parent != self._tmp or wrapper.is_symlink():
            raise StorageFault(f"{tree} is not a tree in the making of the store {self.root}.")
        return wrapper

    def wrapper(self, digest: str) -> Path:
        """Where an artifact lies with what is known about it, if it is there.

        Raises:
            StorageFault: that is no digest.
        """
        if not _DIGEST.fullmatch(digest):
            raise StorageFault(f"'{digest}' is not an artifact's digest, expected 64 hexadecimal digits.")
        return self._objects / digest[:2] / digest

    def _install(self, wrapper: Path, *, digest: str) -> None:
        """Move a finished wrapper to its place; a sound artifact that is there already stays."""
        target = self.wrapper(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.lock(digest):
            if target.exists():
                try:
                    self.verify(digest)
                except DamagedArtifact:
                    self._set_aside(target)
                else:
                    os.utime(target)  # as good as new: nobody deletes it before its row is written
                    return
            wrapper.rename(target)
            _sync_directory(target.parent)

    def _mend(self, wrapper: Path, *, digest: str) -> bool:
        """Whether a damaged artifact is sound after all, since somebody made it anew; else it is set aside."""
        try:
            with self.lock(digest):
                if not wrapper.is_dir():
                    return False
                try:
                    self.verify(digest)
                except DamagedArtifact:
                    self._set_aside(wrapper)
                    return False
        except OSError as error:
            if error.errno not in (*_DENIED, *_FULL):
                raise
            return False  # a store that is read-only by now; the damage is told all the same
        return True

    def _set_aside(self, target: Path) -> None:
        """Take a damaged artifact out of its place, so that a new one can go there."""
        self._damaged.mkdir(parents=True, exist_ok=True)
        target.rename(self._damaged / f"{target.name}.{time.time_ns():x}")

    @contextlib.contextmanager
    def faults(self, verb: str) -> Iterator[None]:
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


def seal(tree: Path) -> None:
    """Take the right to write from directories and from the files that nobody else links to; sync directories."""
    for folder, _, files in os.walk(tree, topdown=False):
        for name in files:
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
