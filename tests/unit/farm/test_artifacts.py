"""The artifact store on a real file system."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from farm import manifest
from farm.artifacts import Store
from farm.errors import StorageFault


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def fill(store: Store, **files: str) -> Path:
    tree = store.new_tree()
    for name, text in files.items():
        path = tree / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tree


def leftovers(store: Store) -> list[str]:
    return [path.name for path in (store.root / "tmp").iterdir()]


def test_what_was_published_is_found_by_its_digest(store: Store) -> None:
    record = store.publish(fill(store, config="abc", deep__weights="12345"), stage="resolve")
    tree = store.path(record.digest)
    assert (record.stage, record.num_files, record.num_bytes) == ("resolve", 2, 8)
    assert (tree / "config").read_text() == "abc"
    assert (tree / "deep/weights").read_text() == "12345"
    assert leftovers(store) == []


def test_the_digest_depends_on_names_and_contents_only(store: Store, tmp_path: Path) -> None:
    first = store.publish(fill(store, a="1", b="2"), stage="export")
    other = Store(tmp_path / "elsewhere")
    again = other.publish(fill(other, b="2", a="1"), stage="export")
    swapped = store.publish(fill(store, a="2", b="1"), stage="export")
    assert first.digest == again.digest
    assert swapped.digest != first.digest


def test_publishing_twice_keeps_the_first_copy(store: Store) -> None:
    first = store.publish(fill(store, a="1"), stage="export")
    inode = (store.path(first.digest) / "a").stat().st_ino
    second = store.publish(fill(store, a="1"), stage="export")
    assert second == first
    assert (store.path(first.digest) / "a").stat().st_ino == inode
    assert leftovers(store) == []


def test_a_published_tree_is_sealed_but_a_linked_file_keeps_its_mode(store: Store, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_text("weights")
    checkpoint.chmod(0o640)
    tree = fill(store, own="1")
    os.link(checkpoint, tree / "linked")
    path = store.path(store.publish(tree, stage="resolve").digest)
    assert (path / "linked").stat().st_ino == checkpoint.stat().st_ino
    assert checkpoint.stat().st_mode & 0o777 == 0o640
    assert (path / "own").stat().st_mode & 0o777 == 0o444
    assert path.stat().st_mode & 0o777 == 0o555


def test_a_changed_file_is_noticed(store: Store, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_text("weights")
    tree = store.new_tree()
    os.link(checkpoint, tree / "model.safetensors")
    record = store.publish(tree, stage="resolve")
    checkpoint.write_text("w3ights")
    with pytest.raises(StorageFault, match=r"'model.safetensors' of artifact .* was changed after it was published"):
        store.path(record.digest)


def test_a_touched_file_is_read_again_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record = store.publish(fill(store, a="1", b="2"), stage="export")
    os.utime(store.path(record.digest) / "a", ns=(1, 1))
    read: list[int] = []
    real = manifest.DigestCache.sha256_of

    def counting(self: manifest.DigestCache, descriptor: int, *, status: os.stat_result) -> str:
        read.append(status.st_ino)
        return real(self, descriptor, status=status)

    monkeypatch.setattr(manifest.DigestCache, "sha256_of", counting)
    inode = (store.path(record.digest) / "a").stat().st_ino
    store.path(record.digest)
    assert read == [inode]


def test_a_damaged_artifact_is_replaced_by_the_next_one_published(store: Store) -> None:
    record = store.publish(fill(store, a="1"), stage="export")
    victim = store.path(record.digest) / "a"
    victim.chmod(0o644)
    victim.write_text("2")
    with pytest.raises(StorageFault, match="was changed"):
        store.path(record.digest)
    store.publish(fill(store, a="1"), stage="export")
    assert (store.path(record.digest) / "a").read_text() == "1"
    assert leftovers(store) == []


def test_a_missing_artifact_is_a_fault(store: Store) -> None:
    store.new_tree()
    with pytest.raises(StorageFault, match="has no artifact 000000000000"):
        store.path("0" * 64)


@pytest.mark.parametrize("digest", ["../../etc", "", "G" * 64, "ab/" + "0" * 61])
def test_only_digests_are_looked_up(store: Store, digest: str) -> None:
    with pytest.raises(StorageFault, match="is not an artifact's digest"):
        store.path(digest)


def test_trees_of_others_are_neither_published_nor_deleted(store: Store, tmp_path: Path) -> None:
    stranger = tmp_path / "tmp" / "x" / "tree"
    stranger.mkdir(parents=True)
    for act in (lambda: store.publish(stranger, stage="run"), lambda: store.discard(stranger)):
        with pytest.raises(StorageFault, match="is not a tree in the making"):
            act()
    assert stranger.is_dir()


def test_links_and_special_files_are_refused_and_nothing_is_published(store: Store) -> None:
    for make, name in (
        (lambda path: path.symlink_to("/etc/passwd"), "a symbolic link"),
        (lambda path: os.mkfifo(path), "a pipe"),
    ):
        tree = fill(store, ok="1")
        make(tree / "bad")
        with pytest.raises(StorageFault, match=f"'bad' is {name}"):
            store.publish(tree, stage="export")
    assert leftovers(store) == []
    assert not (store.root / "objects").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_disk_that_fails_leaves_nothing_half_published(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int, step: str
) -> None:
    tree = fill(store, a="1")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if step == "fsync" else (Path, "rename")), fail)
        with pytest.raises(StorageFault, match=f"artifact store .*{os.strerror(code)}.*set FARM_STORE"):
            store.publish(tree, stage="export")
    assert leftovers(store) == []
    assert [path for path in (store.root / "objects").rglob("*") if path.is_file()] == []


def test_a_store_whose_place_is_taken_by_a_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StorageFault, match="Cannot make a directory in the artifact store"):
        Store(tmp_path / "store").new_tree()


def test_a_big_linked_file_is_hashed_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_bytes(bytes(manifest.CACHE_FROM_BYTES))
    os.utime(checkpoint, ns=(10**18, 10**18))
    hashed: list[str] = []
    real = manifest.hashlib.file_digest
    monkeypatch.setattr(manifest.hashlib, "file_digest", lambda *args: (hashed.append("x"), real(*args))[1])
    for stage in ("resolve", "export"):
        tree = fill(Store(store.root), **{stage: "1"})
        os.link(checkpoint, tree / "model.safetensors")
        Store(store.root).publish(tree, stage=stage)
    assert len(hashed) == 3  # the checkpoint once, two small files


def test_a_file_written_a_moment_ago_is_not_trusted_by_its_time(store: Store, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_bytes(bytes(manifest.CACHE_FROM_BYTES))
    os.utime(checkpoint, ns=(4 * 10**18, 4 * 10**18))
    tree = store.new_tree()
    os.link(checkpoint, tree / "model.safetensors")
    store.publish(tree, stage="resolve")
    assert not (store.root / "digests").exists()


def test_clear_tmp_deletes_trees_in_the_making_and_keeps_artifacts(store: Store) -> None:
    record = store.publish(fill(store, a="1"), stage="export")
    sealed = fill(store, deep__b="2")
    (sealed / "deep").chmod(0o555)
    assert store.clear_tmp() == 1
    assert leftovers(store) == []
    assert (store.path(record.digest) / "a").read_text() == "1"
