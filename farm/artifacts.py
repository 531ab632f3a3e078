"""The artifact store: immutable file trees addressed by their content, in a local directory.

::

    STORE/objects/<dd>/<digest>/tree/           the files as a stage left them
    STORE/objects/<dd>/<digest>/manifest.json   path, SHA-256 and size of each
    STORE/objects/<dd>/<digest>/looks.json      inode, size and time of each, and when their content was last read
    STORE/digests/                              SHA-256 of big files by inode, see farm.manifest
    STORE/damaged/<digest>.<time>/              objects that were not as published, out of the way
    STORE/locks/                                who makes, mends or deletes an object
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
import time
from collections.abc import Iterator
from pathlib import Path

from farm.errors import DamagedArtifact, StorageFault
from farm.manifest import DigestCache, FileEntry, Look, Manifest, names, read_json, survey, write_atomically
from farm.records import ArtifactRecord

REREAD_AFTER_S = 30 * 86400.0  # a disk may spoil a file without changing its look

_DIGEST = re.compile(r"[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR)


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

    def new_tree(self, *, name: str = "tree") -> Path:
        """An empty directory of its own for a stage to fill.

        Args:
            name: for people who look into the directory, such as ``12.1`` for attempt 1 of job 12.
        """
        with self.faults("make a directory in"):
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
            with self.faults("write"):
                manifest, looks = survey(tree, cache=self._digests, durable=True)
                write_atomically(wrapper / "manifest.json", manifest.to_json())
                _write_looks(wrapper, looks, read_at=time.time())
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
        wrapper = self._object(digest)
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
        wrapper = self._object(digest)
        if not wrapper.is_dir():
            raise DamagedArtifact(
                f"The store {self.root} has no artifact {digest[:12]}, though the database knows it. "
                "Was the store cleared? `farm retry` makes it again.",
                digest=digest,
            )
        limit_s = self._reread_after_s if reread_after_s is None else reread_after_s
        manifest = self._manifest(wrapper, digest=digest)
        self._compare(wrapper, manifest=manifest, digest=digest, since=time.time() - limit_s)
        return manifest

    def clear_tmp(self) -> int:
        """Delete all trees in the making and return how many: only for when no stage of this store runs."""
        with self.faults("delete from"):
            if not self._tmp.is_dir():
                return 0
            leftovers = [Path(entry.path) for entry in os.scandir(self._tmp)]
            for leftover in leftovers:
                remove_tree(leftover)
        return len(leftovers)

    @contextlib.contextmanager
    def lock(self, digest: str) -> Iterator[None]:
        """Be the only one, on all hosts that share the directory, who makes, mends or deletes an artifact."""
        import filelock

        path = self.root / "locks" / digest[:2]
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path):
            yield

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

    def _manifest(self, wrapper: Path, *, digest: str) -> Manifest:
        try:
            manifest = Manifest.from_json((wrapper / "manifest.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError) as error:
            raise _damaged(digest, f"has no readable manifest ({error})") from error
        if manifest.digest != digest:
            raise _damaged(digest, "has another artifact's manifest")
        return manifest

    def _compare(self, wrapper: Path, *, manifest: Manifest, digest: str, since: float) -> None:
        """Raise :class:`DamagedArtifact` unless every file is as published; remember how those read again look."""
        looks, read_at = _read_looks(wrapper)
        if not looks or not since <= read_at <= time.time():
            looks, read_at = {}, time.time()
        self._compare_names(wrapper / "tree", manifest=manifest, digest=digest)
        changed = False
        for entry in manifest.files:
            look = self._compare_file(wrapper / "tree", entry, known=looks.get(entry.path), digest=digest, since=since)
            changed = changed or look != looks.get(entry.path)
            looks[entry.path] = look
        if changed:
            with contextlib.suppress(OSError):  # a store that is read-only by now can still be read
                _write_looks(wrapper, looks, read_at=read_at)

    def _compare_names(self, tree: Path, *, manifest: Manifest, digest: str) -> None:
        try:
            found = set(names(tree))
        except FileNotFoundError as error:
            raise _damaged(digest, f"lost a directory ({error.filename})") from error
        except StorageFault as error:
            raise _damaged(digest, f"has got something strange: {error}") from error
        expected = {entry.path for entry in manifest.files}
        for what, some in (("lost", expected - found), ("has got", found - expected)):
            if some:
                raise _damaged(digest, f"{what} the file '{min(some)}'")

    def _compare_file(self, tree: Path, entry: FileEntry, *, known: Look | None, digest: str, since: float) -> Look:
        """How a file looks whose content is as published."""
        try:
            descriptor = os.open(tree / entry.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in _GONE:
                raise _damaged(digest, f"lost the file '{entry.path}' ({error.strerror})") from error
            raise
        try:
            status = os.fstat(descriptor)
            look = Look.of(status)
            if look == known:
                return look
            if (
                status.st_size != entry.num_bytes
                or self._digests.sha256_of(descriptor, status=status, since=since) != entry.sha256
            ):
                raise _damaged(digest, f"has the file '{entry.path}', which was changed after it was published")
        except OSError as error:
            if error.errno == errno.EIO:
                raise _damaged(digest, f"has the file '{entry.path}', which the disk cannot read") from error
            raise
        finally:
            os.close(descriptor)
        return look

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


def _damaged(digest: str, why: str) -> DamagedArtifact:
    return DamagedArtifact(
        f"The artifact {digest[:12]} {why}. If it is a hard link to a model of yours that you wrote to, submit the "
        "model again; else `farm retry` makes the artifact again.",
        digest=digest,
    )


def _read_looks(wrapper: Path) -> tuple[dict[str, Look], float]:
    """How files looked and when their contents were last read; nothing, if that is not known: they are read then."""
    found = read_json(wrapper / "looks.json")
    try:
        looks = {name: Look(**fields) for name, fields in dict(found["looks"]).items()}  # type: ignore[call-overload]
        return looks, float(str(found["read_at"]))
    except (KeyError, TypeError, ValueError):
        return {}, 0.0


def _write_looks(wrapper: Path, looks: dict[str, Look], *, read_at: float) -> None:
    rows = {name: dataclasses.asdict(look) for name, look in looks.items()}
    write_atomically(wrapper / "looks.json", json.dumps({"read_at": read_at, "looks": rows}))


def _seal(tree: Path) -> None:
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
