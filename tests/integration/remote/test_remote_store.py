"""Artifacts in S3 and in the directories of hosts: on a real server, with processes that are really killed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farm import fsck, testing
from farm.errors import DamagedArtifact, StorageFault
from farm.store import remote as remote_module
from farm.store.collection import Places, Policy, collect
from farm.store.manifest import FileEntry
from farm.store.remote import Remote
from farm.store.remote_store import RemoteStore
from tests.artifact_books import DAY_S, Books
from tests.s3_server import CHUNK_BYTES, LIMIT_S, SECRET, S3Server

BIG = random.Random(7).randbytes(3 * CHUNK_BYTES + 5)


def host(tmp_path: Path, remote: Remote, name: str, **how: Any) -> RemoteStore:
    """The store as a host of its own has it."""
    return RemoteStore(tmp_path / name, remote=remote, **how)


def publish(store: RemoteStore, **files: bytes) -> str:
    tree = store.new_tree()
    for name, content in files.items():
        path = tree / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return store.publish(tree, stage="export").digest


def entry(content: bytes) -> FileEntry:
    return FileEntry(path="x", sha256=hashlib.sha256(content).hexdigest(), num_bytes=len(content))


def blob_path(content: bytes) -> str:
    sha256 = entry(content).sha256
    return f"blobs/{sha256[:2]}/{sha256}"


def key(remote: Remote, content: bytes) -> str:
    """Where a blob is asked for."""
    return f"{remote.name.removeprefix('s3:/')}/{blob_path(content)}"


def client(verb: str, root: Path, bucket: str, server: S3Server, argument: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "tests.store_client", verb, str(root), bucket, json.dumps(server.options())]
    return subprocess.Popen([*words, str(argument)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_what_one_host_publishes_another_reads(tmp_path: Path, remote: Remote) -> None:
    digest = publish(host(tmp_path, remote, "a"), config=b"abc", deep__weights=BIG, empty=b"")
    there = host(tmp_path, remote, "b")
    tree = there.path(digest)
    assert (tree / "config").read_bytes() == b"abc"
    assert (tree / "deep" / "weights").read_bytes() == BIG
    assert (tree / "empty").read_bytes() == b""
    assert (tree / "deep" / "weights").stat().st_mode & 0o777 == 0o444
    assert tree.stat().st_mode & 0o777 == 0o555
    assert list((there.root / "tmp").iterdir()) == []
    assert list(there.digests()) == [digest]


def test_equal_files_are_stored_and_sent_once(tmp_path: Path, remote: Remote, s3_server: S3Server) -> None:
    here, there = host(tmp_path, remote, "a"), host(tmp_path, remote, "b")
    snapshot = publish(here, weights=BIG, config=b"1")
    export = publish(here, model__weights=BIG, graph=b"2")
    first = there.path(snapshot) / "weights"
    gets = s3_server.num_requests("GET", key(remote, BIG))
    second = there.path(export) / "model" / "weights"
    assert first.stat().st_ino == second.stat().st_ino
    assert s3_server.num_requests("GET", key(remote, BIG)) == gets == 4
    manifest = here.verify(export)
    assert remote.push(manifest, here.path(export)) == 0


def test_concurrent_publishers_and_readers_of_one_artifact_are_harmless(
    tmp_path: Path, remote: Remote, bucket: str, s3_server: S3Server
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(BIG)
    publishers = [client("publish", tmp_path / "p", bucket, s3_server, source) for _ in range(2)]
    digests = {process.communicate()[0].strip() for process in publishers}
    assert [process.returncode for process in publishers] == [0, 0]
    (digest,) = digests
    gets = s3_server.num_requests("GET", key(remote, BIG))
    readers = [client("path", tmp_path / "b", bucket, s3_server, digest) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in readers}
    assert paths == {str(host(tmp_path, remote, "b").path(digest))}
    assert s3_server.num_requests("GET", key(remote, BIG)) - gets == 4  # a request per chunk, for both together


def test_a_killed_publisher_leaves_no_artifact_and_its_blobs_are_not_sent_again(
    tmp_path: Path, remote: Remote, bucket: str, s3_server: S3Server
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"small")
    (source / "weights").write_bytes(BIG)
    process = client("publish", tmp_path / "a", bucket, s3_server, source)
    wait_until(lambda: s3_server.num_requests("PUT", key(remote, b"small")) or process.poll() is not None)
    process.kill()
    process.communicate()
    here = host(tmp_path, remote, "a")
    if not list(here.digests()):  # else it was faster than the kill
        (left,) = here.cache.digests()
        with pytest.raises(DamagedArtifact, match="has no artifact"):
            host(tmp_path, remote, "b").path(left)
    puts = s3_server.num_requests("PUT", key(remote, b"small"))
    digest = publish(here, a=b"small", weights=BIG)
    assert s3_server.num_requests("PUT", key(remote, b"small")) == puts
    assert (host(tmp_path, remote, "b").path(digest) / "weights").read_bytes() == BIG


def test_a_killed_fetch_leaves_no_artifact_and_goes_on_where_it_was(
    tmp_path: Path, remote: Remote, bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = publish(host(tmp_path, remote, "a"), weights=BIG)
    there = host(tmp_path, remote, "b")
    part = there.root / f"{blob_path(BIG)}.part"
    process = client("die", there.root, bucket, s3_server, digest)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert list(there.cache.digests()) == []
    had = part.stat().st_size
    assert 0 < had < len(BIG)
    starts: list[int] = []
    real = Remote.read_blob

    def watched(self: Remote, wanted: FileEntry, *, start: int) -> Iterator[bytes]:
        starts.append(start)
        return real(self, wanted, start=start)

    monkeypatch.setattr(Remote, "read_blob", watched)
    assert (there.path(digest) / "weights").read_bytes() == BIG
    assert starts == [had]


def test_the_beginning_of_a_file_that_is_wrong_is_fetched_again(tmp_path: Path, remote: Remote) -> None:
    digest = publish(host(tmp_path, remote, "a"), weights=BIG)
    there = host(tmp_path, remote, "b")
    part = there.root / f"{blob_path(BIG)}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"wrong")
    assert (there.path(digest) / "weights").read_bytes() == BIG
    assert not part.exists()


def test_damage_here_is_mended_from_there(tmp_path: Path, remote: Remote) -> None:
    here = host(tmp_path, remote, "a")
    digest = publish(here, config=b"abc", weights=BIG)
    for name in ("config", "weights"):
        victim = here.cache.wrapper(digest) / "tree" / name
        victim.chmod(0o644)
        victim.write_bytes(b"abd")
        tree = here.path(digest)
        assert ((tree / "config").read_bytes(), (tree / "weights").read_bytes()) == (b"abc", BIG)
    assert len(list((here.root / "damaged").iterdir())) == 2


@pytest.mark.parametrize("damage", ["spoilt", "cut", "gone", "no manifest", "bad manifest"])
def test_damage_there_is_told_and_the_same_can_be_published_again(tmp_path: Path, remote: Remote, damage: str) -> None:
    here, there = host(tmp_path, remote, "a"), host(tmp_path, remote, "b")
    digest = publish(here, config=b"abc", other=b"defg")
    fs, root = remote._fs()
    blob, manifest = f"{root}/{blob_path(b'abc')}", f"{root}/manifests/{digest[:2]}/{digest}"
    {
        "spoilt": lambda: fs.pipe_file(blob, b"abd"),
        "cut": lambda: fs.pipe_file(blob, b"ab"),
        "gone": lambda: fs.rm_file(blob),
        "no manifest": lambda: fs.rm_file(manifest),
        "bad manifest": lambda: fs.pipe_file(manifest, b"{"),
    }[damage]()
    with pytest.raises(DamagedArtifact) as told:
        there.path(digest)
    assert told.value.digest == digest
    assert list(there.cache.digests()) == []
    assert publish(here, config=b"abc", other=b"defg") == digest
    assert (there.path(digest) / "config").read_bytes() == b"abc"


def test_a_server_that_does_not_answer_is_a_fault_without_secrets(tmp_path: Path) -> None:
    silent: dict[str, Any] = {"endpoint_url": "http://127.0.0.1:9", "key": "farm", "secret": SECRET}
    silent["config_kwargs"] = {"retries": {"max_attempts": 0}, "connect_timeout": 1}
    remote = Remote("s3://bucket/farm", options=silent)
    with pytest.raises(StorageFault, match=r"artifact store s3://bucket/farm: .*FARM_STORE_OPTIONS") as told:
        host(tmp_path, remote, "a").path("0" * 64)
    assert not isinstance(told.value, DamagedArtifact)
    assert SECRET not in str(told.value) + repr(told.value.__cause__)


def test_a_publisher_looks_again_when_somebody_has_swept(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = host(tmp_path, remote, "a")
    digest = publish(here, config=b"abc")
    waits = threading.Event()
    monkeypatch.setattr(remote_module.time, "sleep", lambda _: waits.set() or threading.Event().wait(0.01))
    thread = threading.Thread(target=publish, args=(here,), kwargs={"config": b"abc"})
    with remote.sweeping():  # by a sweeper that looked before the publisher's manifest was there
        thread.start()
        assert waits.wait(LIMIT_S)
        remote.forget_blob(entry(b"abc"))
        remote.forget(digest)
    thread.join()
    assert (host(tmp_path, remote, "b").path(digest) / "config").read_bytes() == b"abc"


def test_the_longest_unused_go_from_a_full_host_and_what_is_used_stays(tmp_path: Path, remote: Remote) -> None:
    here = host(tmp_path, remote, "a")
    parts = [bytes([number]) * CHUNK_BYTES for number in range(3)]
    digests = [publish(here, weights=part, more=b"x") for part in parts]
    root = tmp_path / "b"
    used = RemoteStore(root, remote=remote)
    unused = RemoteStore(root, remote=remote)
    for number, store in enumerate((used, unused)):
        store.path(digests[number])
        os.utime(store.cache.wrapper(digests[number]), (1.0 + number, 1.0 + number))
    unused.release()
    full = RemoteStore(root, remote=remote, cache_budget_bytes=2 * CHUNK_BYTES + 1000)
    full.path(digests[2])
    assert sorted(full.cache.digests()) == sorted([digests[0], digests[2]])
    held = {path.name for path in (root / "blobs").glob("*/*")}
    assert held == {entry(content).sha256 for content in (parts[0], parts[2], b"x")}
    assert (full.path(digests[1]) / "weights").read_bytes() == parts[1]


def test_collecting_deletes_manifests_first_and_blobs_with_their_last_name(
    tmp_path: Path, remote: Remote, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with testing.fresh_database() as database:
        store = host(tmp_path, remote, "a")
        books = Books(database=database, store=store, host=testing.add_host(database))
        testing.add_submission(database)
        done = books.work()
        books.age(*done.values(), days=40)
        shared = publish(store, content=b"shared", own=b"1")
        policy = Policy(unused_for_s=30 * DAY_S, grace_s=0.0)
        places = Places(store=store)
        assert collect(database, places, policy=policy).deleted == ()  # published a moment ago
        monkeypatch.setattr(remote_module, "_time_of", lambda info: 1.0)  # long ago, by the server's clock
        report = collect(database, places, policy=policy)
        assert set(report.deleted) == set(done.values())
        assert report.orphans == (shared,)
        assert list(store.digests()) == []
        assert remote._list("blobs") == {}
        assert report.num_bytes == report.deleted_bytes + report.orphan_bytes
        testing.add_submission(database)
        assert books.work() == done
        assert (host(tmp_path, remote, "b").path(done["export"]) / "content").exists()


def test_fsck_reads_all_there_is_at_the_url_when_asked_and_lets_it_be_made_anew(tmp_path: Path, remote: Remote) -> None:
    with testing.fresh_database() as database:
        store = host(tmp_path, remote, "a")
        books = Books(database=database, store=store, host=testing.add_host(database))
        testing.add_submission(database)
        done = books.work()
        places = Places(store=store)
        content = (store.path(done["export"]) / "content").read_bytes()
        fs, root = remote._fs()
        fs.pipe_file(f"{root}/{blob_path(content)}", bytes(len(content)))
        assert list(fsck.check(database, places)) == []
        (found,) = fsck.check(database, places, deep=True, repair=True)
        assert (found.kind, found.subject, found.state) == ("damaged", done["export"], fsck.State.REPAIRED)
        assert list(fsck.check(database, places, deep=True)) == []
        testing.add_submission(database)
        assert books.work() == {"export": done["export"]}
        assert (host(tmp_path, remote, "b").path(done["export"]) / "content").read_bytes() == content


def test_a_directory_that_hosts_share_works_as_a_url_does(tmp_path: Path) -> None:
    remote = Remote(f"file://{tmp_path / 'shared'}", options={})
    digest = publish(host(tmp_path, remote, "a"), weights=BIG, deep__config=b"abc")
    there = host(tmp_path, remote, "b")
    assert (there.path(digest) / "weights").read_bytes() == BIG
    assert [path.name for path in (tmp_path / "shared" / "blobs").glob("*/*") if path.name.startswith(".")] == []
    assert list(there.digests()) == [digest]
    there.release()
    assert there.remove(digest, untouched_since=time.time() + 1)
    assert there.sweep(untouched_since=time.time() + 1) == len(BIG) + 3
    assert list((tmp_path / "shared").rglob("*.*")) == list((there.root / "blobs").glob("*/*")) == []
