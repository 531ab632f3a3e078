"""The artifact store on a real file system."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from farm.errors import DamagedArtifact, StorageFault
from farm.store import artifacts, manifest
from farm.store.artifacts import Store


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
    with pytest.raises(StorageFault, match=r"'model.safetensors', which was changed after it was published"):
        store.path(record.digest)


def test_a_touched_file_is_read_again_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record = store.publish(fill(store, a="1", b="2"), stage="export")
    os.utime(store.path(record.digest) / "a", ns=(1, 1))
    read: list[int] = []
    real = manifest.DigestCache.sha256_of

    def counting(self: manifest.DigestCache, descriptor: int, *, status: os.stat_result, since: float) -> str:
        read.append(status.st_ino)
        return real(self, descriptor, status=status, since=since)

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
    with pytest.raises(DamagedArtifact, match="has no artifact"):
        store.path(record.digest)
    store.publish(fill(store, a="1"), stage="export")
    assert (store.path(record.digest) / "a").read_text() == "1"
    assert leftovers(store) == []


def spoil_content(wrapper: Path) -> None:
    """Flip a bit, as a disk does: neither size nor time say so."""
    path = wrapper / "tree" / "deep" / "weights"
    before = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[3] ^= 0x10
    path.write_bytes(content)
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut_off(wrapper: Path) -> None:
    path = wrapper / "tree" / "deep" / "weights"
    path.chmod(0o644)
    os.truncate(path, 2)


def lose_file(wrapper: Path) -> None:
    (wrapper / "tree" / "deep").chmod(0o755)
    (wrapper / "tree" / "deep" / "weights").unlink()


def lose_tree(wrapper: Path) -> None:
    (wrapper / "tree").rename(wrapper.parent / "elsewhere")


def add_file(wrapper: Path) -> None:
    (wrapper / "tree").chmod(0o755)
    (wrapper / "tree" / "more").write_text("x")


def add_link(wrapper: Path) -> None:
    (wrapper / "tree").chmod(0o755)
    (wrapper / "tree" / "more").symlink_to("config")


def cut_manifest(wrapper: Path) -> None:
    (wrapper / "manifest.json").write_text((wrapper / "manifest.json").read_text()[:-20])


def change_manifest(wrapper: Path) -> None:
    text = (wrapper / "manifest.json").read_text()
    (wrapper / "manifest.json").write_text(text.replace("deep/weights", "deep/wights"))


def lose_manifest(wrapper: Path) -> None:
    (wrapper / "manifest.json").unlink()


DAMAGES = {
    spoil_content: "'deep/weights', which was changed after it was published",
    cut_off: "'deep/weights', which was changed after it was published",
    lose_file: "lost the file 'deep/weights'",
    lose_tree: "lost a directory",
    add_file: "has got the file 'more'",
    add_link: "something strange: 'more' is a symbolic link",
    cut_manifest: "has no readable manifest",
    change_manifest: "has another artifact's manifest",
    lose_manifest: "has no readable manifest",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_told_before_use_and_set_aside_so_that_the_same_can_be_published(
    store: Store, damage: Callable[[Path], None]
) -> None:
    digest = store.publish(fill(store, config="abc", deep__weights="12345"), stage="resolve").digest
    damage(store.root / "objects" / digest[:2] / digest)
    reading = Store(store.root, reread_after_s=0)
    with pytest.raises(DamagedArtifact, match=DAMAGES[damage]) as told:
        reading.path(digest)
    assert told.value.digest == digest
    assert [path.name.partition(".")[0] for path in (store.root / "damaged").iterdir()] == [digest]
    assert store.publish(fill(store, config="abc", deep__weights="12345"), stage="resolve").digest == digest
    assert (reading.path(digest) / "deep" / "weights").read_text() == "12345"


def test_a_flipped_bit_is_found_once_the_last_reading_is_old(store: Store) -> None:
    digest = store.publish(fill(store, config="abc", deep__weights="12345"), stage="resolve").digest
    wrapper = store.root / "objects" / digest[:2] / digest
    spoil_content(wrapper)
    assert store.path(digest) == wrapper / "tree"
    looks = json.loads((wrapper / "looks.json").read_text())
    looks["read_at"] -= artifacts.REREAD_AFTER_S
    (wrapper / "looks.json").write_text(json.dumps(looks))
    with pytest.raises(DamagedArtifact, match="was changed"):
        store.path(digest)


def test_a_lost_note_of_looks_costs_a_reading_and_no_artifact(store: Store) -> None:
    digest = store.publish(fill(store, config="abc"), stage="resolve").digest
    looks = store.path(digest).parent / "looks.json"
    before = json.loads(looks.read_text())["looks"]
    looks.write_text('{"loo')
    store.path(digest)
    assert json.loads(looks.read_text())["looks"] == before


def test_a_store_that_is_full_tells_it_and_keeps_what_it_has(store: Store) -> None:
    kept = store.publish(fill(store, a="1"), stage="export").digest
    tree = fill(store, big="x" * 10_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))  # what a manifest needs is more
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(StorageFault, match=r"The disk is full.*set FARM_STORE"):
            store.publish(tree, stage="export")
        assert (store.path(kept) / "a").read_text() == "1"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert leftovers(store) == []


def test_damage_in_a_store_that_is_read_only_is_told_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = store.publish(fill(store, config="abc", deep__weights="12345"), stage="resolve").digest
    cut_off(store.root / "objects" / digest[:2] / digest)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "rename", refuse)
    for _ in range(2):
        with pytest.raises(DamagedArtifact, match="was changed"):
            store.path(digest)


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
