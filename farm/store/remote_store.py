"""The store of a farm with several hosts: artifacts at a URL, and on each host those that were used there lately.

Stages need real files: weights are mapped into memory, and ONNX finds external data by relative paths. So an artifact
is fetched into a directory of the host before its first use there, once however many processes want it, and goes when
the directory is over its budget and nobody uses it. The directory is a store as :mod:`farm.store.artifacts` has it,
and also::

    STORE/blobs/<dd>/<sha256>         contents that artifacts here link to; one that only this names is spare
    STORE/blobs/<dd>/<sha256>.part    the beginning of one that is being fetched, or was when its process died
    STORE/manifests/<digest>          manifests that were read for counting
    STORE/uses/<digest>               locked by whoever uses the artifact, for as long as the process lives
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from farm.errors import DamagedArtifact
from farm.records import ArtifactRecord
from farm.store import disposal
from farm.store.artifacts import Store, remove_tree, seal
from farm.store.manifest import Blob, FileEntry, Look, Manifest, write_atomically
from farm.store.remote import Remote
from farm.store.verification import write_looks

_FRESH_FOR_S = 60.0  # what came here so short a time ago may be about to be used
_SHARED_FROM_BYTES = 1 << 20  # smaller files of what is made here are fetched faster than found


class RemoteStore(Store):
    """A store at a URL with a directory of this host.

    Args:
        root: the directory.
        remote: the URL.
        cache_budget_bytes: of the directory; None: any.
    """

    def __init__(self, root: Path, *, remote: Remote, cache_budget_bytes: int | None = None) -> None:
        super().__init__(root)
        self.cache = Store(root)
        self._remote = remote
        self._blobs = root / "blobs"
        self._budget_bytes = cache_budget_bytes
        self._uses: dict[str, int] = {}

    @property
    def name(self) -> str:
        """The URL, without secrets."""
        return self._remote.name

    def publish(self, tree: Path, *, stage: str) -> ArtifactRecord:
        """As :meth:`Store.publish`: here first, then for everybody."""
        record = self.cache.publish(tree, stage=stage)
        self._use(record.digest)
        with self.faults("read"):
            manifest = self.cache.verify(record.digest)
            here = self.cache.wrapper(record.digest) / "tree"
            self._remote.push(manifest, here)
            self._share(manifest, here)
            self._evict()
        return record

    def path(self, digest: str) -> Path:
        """As :meth:`Store.path`, after fetching the artifact if it is not here, or damaged here.

        It stays for as long as this process lives.
        """
        with self.faults("read"):
            self._use(digest)
        try:
            return self.cache.path(digest)
        except DamagedArtifact:
            with self.faults("write"):
                self._fetch(digest)
            return self.cache.path(digest)

    def release(self) -> None:
        """Let go of the artifacts that this process used."""
        while self._uses:
            os.close(self._uses.popitem()[1])

    def verify(self, digest: str, *, reread_after_s: float | None = None) -> Manifest:
        """As :meth:`Store.verify`, of what is at the URL: the sizes of its blobs, with 0 their contents, too."""
        manifest = self._remote.manifest(digest)
        lost = self._remote.missing(manifest.files)
        if not lost and reread_after_s == 0:
            lost = [entry for entry in manifest.files if not self._remote.check_blob(entry)]
        if lost:
            raise self._lost(digest, lost[0])
        return manifest

    def digests(self) -> Iterator[str]:
        """The artifacts at the URL."""
        yield from self._remote.digests()

    def blobs(self, digest: str) -> Iterator[Blob]:
        """The bytes that an artifact's files name, an entry per file."""
        known = self.root / "manifests" / digest
        try:
            manifest = Manifest.from_json(known.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            try:
                manifest = self._remote.manifest(digest)
            except DamagedArtifact:
                return
            known.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(known, manifest.to_json())
        for entry in manifest.files:
            yield Blob(id=entry.sha256, num_bytes=entry.num_bytes, num_names=0)

    def touched_at(self, digest: str) -> float:
        """When an artifact was last published, by the clock of the URL's server; 0 if it is not there."""
        return self._remote.published_at(digest) or 0.0

    def remove(self, digest: str, *, untouched_since: float, confirmed: Callable[[], bool] = lambda: True) -> bool:
        """As :meth:`Store.remove`. Blobs stay until :meth:`sweep`, what other hosts have until they need the room."""
        with self._remote.sweeping():
            published_at = self._remote.published_at(digest)
            if published_at is not None:
                if published_at > untouched_since or not confirmed():
                    return False
                self._remote.forget(digest)
        (self.root / "manifests" / digest).unlink(missing_ok=True)
        self._drop(digest)
        return True

    def set_aside(self, digest: str) -> None:
        """Let an artifact that is damaged at the URL be published anew: spoilt blobs and the manifest are deleted."""
        try:
            manifest = self._remote.manifest(digest)
        except DamagedArtifact:
            manifest = Manifest(files=())
        for entry in manifest.files:
            if not self._remote.check_blob(entry):
                self._remote.forget_blob(entry)
        self._remote.forget(digest)

    def sweep(self, *, untouched_since: float) -> int:
        """Delete blobs that no artifact names, at the URL and here; the bytes of those at the URL."""
        self._delete_spares()
        with self._remote.sweeping():
            named = {blob.id for digest in self._remote.digests() for blob in self.blobs(digest)}
            return self._remote.sweep(named, untouched_since=untouched_since)

    def _lost(self, digest: str, entry: FileEntry) -> DamagedArtifact:
        return DamagedArtifact(
            f"The store {self._remote.name} has lost or spoilt the file '{entry.path}' of artifact {digest[:12]}. "
            "`farm retry` makes it again.",
            digest=digest,
        )

    def _fetch(self, digest: str) -> None:
        """Bring an artifact here, unless somebody else has while we waited."""
        with self.lock(digest):
            if self.cache.touched_at(digest):
                return
            manifest = self._remote.manifest(digest)
            wrapper = self.cache.new_tree(name="fetch").parent
            try:
                looks = {}
                for entry in sorted(manifest.files, key=lambda entry: entry.num_bytes):
                    looks[entry.path] = self._fetch_file(entry, wrapper / "tree" / entry.path, digest=digest)
                write_atomically(wrapper / "manifest.json", manifest.to_json())
                write_looks(wrapper, looks, read_at=time.time())
                seal(wrapper / "tree")
                self.cache.wrapper(digest).parent.mkdir(parents=True, exist_ok=True)
                wrapper.rename(self.cache.wrapper(digest))
            finally:
                remove_tree(wrapper)
        self._evict()

    def _blob(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256

    def _fetch_file(self, entry: FileEntry, target: Path, *, digest: str) -> Look:
        """Link a file to its blob, which is fetched if it is not here; how the file looks.

        Raises:
            DamagedArtifact: the URL has it no more, or spoilt; it is out of the way there.
        """
        path = self._blob(entry.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.lock(entry.sha256, kind="blobs"):
            if not self._is_sound(path, entry) and not self._fetch_blob(entry, path):
                self._remote.forget(digest)
                raise self._lost(digest, entry)
            try:
                os.link(path, target)
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
                shutil.copyfile(path, target)  # a file system allows so many names of, say, the empty file
            return Look.of(target.stat(follow_symlinks=False))

    def _fetch_blob(self, entry: FileEntry, path: Path) -> bool:
        """Whether a blob came here whole; a second try when the first brought something else."""
        part = path.with_suffix(".part")
        for _ in range(2):
            try:
                if self._download(entry, part):
                    part.rename(path)
                    path.chmod(0o444)
                    return True
            except FileNotFoundError:
                return False
        self._remote.forget_blob(entry)
        return False

    def _is_sound(self, path: Path, entry: FileEntry) -> bool:
        """Whether a blob is here and right; one that is not is deleted."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            status = os.fstat(descriptor)
            if status.st_size == entry.num_bytes and self._digests.sha256_of(descriptor, status=status) == entry.sha256:
                return True
        finally:
            os.close(descriptor)
        path.unlink()
        return False

    def _download(self, entry: FileEntry, part: Path) -> bool:
        """Fetch what is missing of a blob; whether its content is right. If not, nothing of it is left."""
        digest = hashlib.sha256()
        with part.open("ab+") as stream:
            stream.seek(0)
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
            if stream.tell() < entry.num_bytes:
                for chunk in self._remote.read_blob(entry, start=stream.tell()):
                    stream.write(chunk)
                    digest.update(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        if digest.hexdigest() == entry.sha256:
            return True
        part.unlink()
        return False

    def _share(self, manifest: Manifest, tree: Path) -> None:
        """Let artifacts that are fetched later link to big files of one that was made here."""
        for entry in manifest.files:
            path = self._blob(entry.sha256)
            if entry.num_bytes >= _SHARED_FROM_BYTES and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(OSError):  # a saving, which a system may refuse for files of others
                    os.link(tree / entry.path, path)

    def _use(self, digest: str) -> None:
        """Keep an artifact here until this process ends."""
        if digest in self._uses:
            return
        self._uses[digest] = self._lock_use(digest, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.cache.wrapper(digest))  # last used

    def _lock_use(self, digest: str, how: int) -> int:
        """An open descriptor that holds the lock of an artifact's users; BlockingIOError if it is not to be had."""
        path = self.root / "uses" / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, how)
                if os.fstat(descriptor).st_ino == path.stat().st_ino:
                    return descriptor
            except FileNotFoundError:
                pass  # deleted while we waited
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _drop(self, digest: str) -> None:
        """Delete an artifact here unless somebody uses it; its blobs become spare."""
        try:
            descriptor = self._lock_use(digest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        try:
            self.cache.remove(digest, untouched_since=time.time())
            (self.root / "uses" / digest).unlink()
        finally:
            os.close(descriptor)

    def _evict(self) -> None:
        """Make room: artifacts that were not used for longest go, and then their blobs."""
        if self._budget_bytes is None:
            return
        held = disposal.holdings(self.cache)
        ledger = disposal.Ledger(_without_blobs(held))
        limit = time.time() - _FRESH_FOR_S
        for digest in sorted(held, key=self.cache.touched_at):
            if ledger.num_bytes <= self._budget_bytes or self.cache.touched_at(digest) > limit:
                break
            self._drop(digest)
            if not self.cache.touched_at(digest):
                ledger.take(digest)
        self._delete_spares()

    def _delete_spares(self) -> None:
        """Delete blobs here that nothing links to any more; one that is being fetched is locked."""
        for path in self._blobs.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                if path.suffix == ".part" or path.stat().st_nlink > 1:
                    continue
                with self.lock(path.name, kind="blobs"):
                    if path.stat().st_nlink == 1:
                        path.unlink()


def _without_blobs(held: disposal.Holdings) -> dict[str, list[Blob]]:
    """Holdings as if the directory of blobs had no names: a blob that artifacts link to has one there."""
    return {
        digest: [dataclasses.replace(blob, num_names=blob.num_names - 1) for blob in blobs]
        for digest, blobs in held.items()
    }
