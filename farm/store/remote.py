"""Artifacts at a URL of fsspec (``s3://bucket/prefix``), for several hosts. Whole ones are :mod:`remote_store`'s.

::

    URL/blobs/<dd>/<sha256>        contents of files, each once, whichever artifacts name it
    URL/manifests/<dd>/<digest>    written last: with it the artifact is there
    URL/sweeping/<id>              somebody deletes; whoever has published looks again when it is gone

A publisher sends the blobs that are not there, then the manifest. What it found there may be deleted between its look
and its manifest, so after the manifest it waits until nobody sweeps and looks again. A sweeper marks itself, *then*
looks which manifests there are, and deletes only old blobs that none of them names. So either the sweeper sees the
manifest, or the publisher's second look comes after the sweep.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import sys
import time
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from farm.errors import DamagedArtifact, StorageFault
from farm.store.manifest import FileEntry, Manifest

SWEEP_LIMIT_S = 300.0  # a sweeper that is still marked after this time has died
CHUNK_BYTES = 8 << 20
# Of an upload to S3: with four files at once 128 MiB are in memory. By default it were 50 MiB, ten times for each file.
_PARTS = {"chunksize": 16 << 20, "max_concurrency": 2}
_AT_ONCE = 8  # requests
_POLL_S = 0.2
# There a file appears with its whole content or not at all.
_WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})


class Remote:
    """A place for blobs and manifests.

    Args:
        url: where, as fsspec knows it.
        options: of the file system, such as ``endpoint_url``, ``key`` and ``secret``. Never printed.
        environ: variables that the file system's library looks its credentials up in, when they are not this process's.
        chunk_bytes: of one request that reads.
    """

    def __init__(
        self,
        url: str,
        *,
        options: Mapping[str, Any],
        environ: Mapping[str, str] | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._options = {"use_listings_cache": False, "skip_instance_cache": True, **options}
        self._url = url
        self._environ = dict(environ or {})
        self._chunk_bytes = chunk_bytes
        self._opened: tuple[Any, str] | None = None

    @property
    def name(self) -> str:
        """The URL without whatever stands before an ``@``."""
        parts = urllib.parse.urlsplit(self._url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    def manifest(self, digest: str) -> Manifest:
        """The manifest of an artifact.

        Raises:
            DamagedArtifact: there is none, or it is another one's.
            StorageFault: the place does not answer.
        """
        try:
            manifest = Manifest.from_json(self._read(_manifest_path(digest)).decode())
        except FileNotFoundError as error:
            raise DamagedArtifact(
                f"The store {self.name} has no artifact {digest[:12]}, though the database knows it. Was it cleared? "
                "`farm retry` makes it again.",
                digest=digest,
            ) from error
        except ValueError as error:
            raise _damaged(self.name, digest, f"has no readable manifest ({error})") from error
        if manifest.digest != digest:
            raise _damaged(self.name, digest, "has another artifact's manifest")
        return manifest

    def push(self, manifest: Manifest, tree: Path) -> int:
        """Publish the files of a tree; how many bytes were sent. Blobs that are there already are not.

        Raises:
            StorageFault: the place does not answer or refuses.
            OSError: the tree cannot be read.
        """
        files = {entry.sha256: entry for entry in manifest.files}
        sent = self._send_missing(tree, files.values())
        self._write(_manifest_path(manifest.digest), manifest.to_json().encode())
        self._wait_for_sweepers()
        sent += self._send_missing(tree, files.values())
        if self._modified_at(_manifest_path(manifest.digest)) is None:
            self._write(_manifest_path(manifest.digest), manifest.to_json().encode())
        return sent

    def read_blob(self, entry: FileEntry, *, start: int) -> Iterator[bytes]:
        """The content of a file from a byte on, in order, while later parts of it are on their way.

        Raises:
            FileNotFoundError: there is no such blob.
            StorageFault: the place does not answer.
        """
        fs, root = self._fs()
        path = f"{root}/{_blob_path(entry.sha256)}"
        starts = iter(range(start, entry.num_bytes, self._chunk_bytes))

        def fetch(begin: int) -> bytes:
            return bytes(fs.cat_file(path, start=begin, end=min(begin + self._chunk_bytes, entry.num_bytes)))

        with self._faults("read"), concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            coming = [pool.submit(fetch, begin) for begin, _ in zip(starts, range(_AT_ONCE), strict=False)]
            while coming:
                yield coming.pop(0).result()
                begin = next(starts, None)
                if begin is not None:
                    coming.append(pool.submit(fetch, begin))

    def missing(self, files: Iterable[FileEntry]) -> list[FileEntry]:
        """The files whose blobs are not there, or have another size.

        Raises:
            StorageFault: the place does not answer.
        """
        fs, root = self._fs()

        def is_missing(entry: FileEntry) -> bool:
            try:
                return int(fs.info(f"{root}/{_blob_path(entry.sha256)}")["size"]) != entry.num_bytes
            except FileNotFoundError:
                return True

        listed = list(files)
        with self._faults("look into"), concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            return [entry for entry, gone in zip(listed, pool.map(is_missing, listed), strict=True) if gone]

    def check_blob(self, entry: FileEntry) -> bool:
        """Whether a blob's content is what its name says; all of it is read.

        Raises:
            StorageFault: the place does not answer.
        """
        digest = hashlib.sha256()
        try:
            for chunk in self.read_blob(entry, start=0):
                digest.update(chunk)
        except FileNotFoundError:
            return False
        return digest.hexdigest() == entry.sha256

    def forget_blob(self, entry: FileEntry) -> None:
        """Delete a blob that is not what its name says: the next publisher sends it again.

        Raises:
            StorageFault: the place does not answer.
        """
        self._delete([_blob_path(entry.sha256)])

    def forget(self, digest: str) -> None:
        """Delete a manifest.

        Raises:
            StorageFault: the place does not answer.
        """
        self._delete([_manifest_path(digest)])

    def digests(self) -> list[str]:
        """The artifacts that are there.

        Raises:
            StorageFault: the place does not answer.
        """
        return sorted(path.rpartition("/")[2] for path in self._list("manifests"))

    def published_at(self, digest: str) -> float | None:
        """When an artifact was last published, by the place's clock; None if it is not there.

        Raises:
            StorageFault: the place does not answer.
        """
        return self._modified_at(_manifest_path(digest))

    @contextlib.contextmanager
    def sweeping(self) -> Iterator[None]:
        """Be marked as somebody who deletes, for :data:`SWEEP_LIMIT_S` at most.

        Raises:
            StorageFault: the place does not answer.
        """
        mark = f"sweeping/{uuid.uuid4().hex}"
        self._write(mark, b"")
        try:
            yield
        finally:
            self._delete([mark])

    def sweep(self, named: Iterable[str], *, untouched_since: float, limit_s: float = SWEEP_LIMIT_S / 2) -> int:
        """Delete blobs that no manifest names; their bytes. For somebody who is marked, and has looked after that.

        Args:
            named: SHA-256 of blobs that stay.
            untouched_since: younger blobs stay: their manifest may be on its way.
            limit_s: the rest is for another time then.

        Raises:
            StorageFault: the place does not answer.
        """
        deadline = time.monotonic() + limit_s
        kept = set(named)
        num_bytes = 0
        for path, info in self._list("blobs").items():
            sha256 = path.rpartition("/")[2].rpartition(".")[2]
            if sha256 not in kept and (_time_of(info) or 0.0) <= untouched_since and time.monotonic() < deadline:
                self._delete([path])
                num_bytes += int(info["size"])
        return num_bytes

    def _send_missing(self, tree: Path, files: Iterable[FileEntry]) -> int:
        wanted = self.missing(files)
        with self._faults("write"), concurrent.futures.ThreadPoolExecutor(_AT_ONCE // 2) as pool:
            for future in [pool.submit(self._send, tree / entry.path, entry) for entry in wanted]:
                future.result()
        return sum(entry.num_bytes for entry in wanted)

    def _send(self, source: Path, entry: FileEntry) -> None:
        fs, root = self._fs()
        target = f"{root}/{_blob_path(entry.sha256)}"
        whole = _protocol(fs) in _WHOLE
        draft = target if whole else f"{_parent(target)}/.{uuid.uuid4().hex}.{entry.sha256}"
        options = _PARTS if _protocol(fs) in ("s3", "s3a") else {}
        with _making_parents(fs, target) as attempt:
            attempt(lambda: fs.put_file(os.fspath(source), draft, **options))
        if not whole:
            fs.mv(draft, target)

    def _wait_for_sweepers(self) -> None:
        deadline = time.monotonic() + SWEEP_LIMIT_S
        while marks := list(self._list("sweeping")):
            if time.monotonic() > deadline:
                self._delete(marks)
                return
            time.sleep(_POLL_S)

    def _modified_at(self, path: str) -> float | None:
        fs, root = self._fs()
        with self._faults("look into"):
            try:
                return _time_of(fs.info(f"{root}/{path}"))
            except FileNotFoundError:
                return None

    def _read(self, path: str) -> bytes:
        fs, root = self._fs()
        with self._faults("read"):
            return bytes(fs.cat_file(f"{root}/{path}"))

    def _write(self, path: str, content: bytes) -> None:
        fs, root = self._fs()
        target = f"{root}/{path}"
        with self._faults("write"), _making_parents(fs, target) as attempt:
            attempt(lambda: fs.pipe_file(target, content))

    def _delete(self, paths: Sequence[str]) -> None:
        fs, root = self._fs()
        with self._faults("delete from"):
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    fs.rm_file(f"{root}/{path}")

    def _list(self, folder: str) -> dict[str, Mapping[str, Any]]:
        """What is below a folder, by path relative to the root."""
        fs, root = self._fs()
        with self._faults("list"):
            try:
                found = fs.find(f"{root}/{folder}", detail=True)
            except FileNotFoundError:
                return {}
        return {path[path.index(f"/{folder}/") + 1 :]: info for path, info in sorted(found.items())}

    def _fs(self) -> tuple[Any, str]:
        """The file system and the root's path in it, opened when first used."""
        if self._opened is None:
            try:
                import fsspec
            except ImportError as error:
                raise StorageFault(
                    f"The store {self.name} needs fsspec and the package of its protocol: pip install 'qeff-farm[s3]'."
                ) from error
            with self._faults("open"), _variables(self._environ):
                try:
                    fs, root = fsspec.core.url_to_fs(self._url, **self._options)
                except (ImportError, ValueError) as error:
                    raise StorageFault(f"The store {self.name} cannot be opened: {error}.") from error
                self._opened = fs, root.rstrip("/")
                with contextlib.suppress(FileNotFoundError):
                    fs.exists(root)  # credentials are looked up now, while the variables are there
        return self._opened

    @contextlib.contextmanager
    def _faults(self, verb: str) -> Iterator[None]:
        """Turn what a file system's library says into words about the store."""
        try:
            yield
        except FileNotFoundError:
            raise
        except _errors() as error:
            raise StorageFault(
                f"Cannot {verb} the artifact store {self.name}: {type(error).__name__}: {error}. Check that it is "
                "there, that this host reaches it, and its credentials (FARM_STORE_OPTIONS)."
            ) from error


def _errors() -> tuple[type[BaseException], ...]:
    """What file systems raise: also errors of the libraries that are loaded by now, which are no OSError."""
    names = (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
    )
    return (OSError, *(getattr(sys.modules[module], name) for module, name in names if module in sys.modules))


def _damaged(name: str, digest: str, why: str) -> DamagedArtifact:
    return DamagedArtifact(
        f"The artifact {digest[:12]} of the store {name} {why}. `farm retry` makes it again.", digest=digest
    )


def _protocol(fs: Any) -> str:
    return str(fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0])


@contextlib.contextmanager
def _making_parents(fs: Any, path: str) -> Iterator[Any]:
    """Gives a function that does something once more after it has made the directory that was missing."""

    def attempt(act: Any) -> None:
        try:
            act()
        except FileNotFoundError:
            fs.makedirs(_parent(path), exist_ok=True)
            act()

    yield attempt


@contextlib.contextmanager
def _variables(environ: Mapping[str, str]) -> Iterator[None]:
    """Have environment variables for a moment."""
    before = {name: os.environ.get(name) for name in environ}
    os.environ.update(environ)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _time_of(info: Mapping[str, Any]) -> float | None:
    """When a file was written, as the file systems tell it: s3fs, gcsfs and adlfs each have their own key."""
    for key in ("LastModified", "mtime", "last_modified", "created", "updated"):
        found = info.get(key)
        if found is not None:
            return float(found) if isinstance(found, int | float) else float(found.timestamp())
    return None


def _manifest_path(digest: str) -> str:
    return f"manifests/{digest[:2]}/{digest}"


def _blob_path(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
