"""Which files are a checkpoint's code, what digest they have, and what is refused of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qeff_engine import checkpoint, code_files, spec
from qeff_engine.errors import EngineError, InvalidInput, Unsupported
from tests import tiny, twist

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Code and configs, without weights."""
    root = tmp_path / "model"
    twist.write_code(root)
    twist.change(root / "config.json", {"model_type": "twist", "auto_map": twist.AUTO_MAP})
    return root


def name_in_auto_map(directory: Path, reference: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    twist.change(directory / "config.json", {**config, "auto_map": {"AutoConfig": reference}})


def test_the_code_is_every_file_that_an_import_can_reach(directory: Path) -> None:
    for name in ("convert-weights.py", ".git/hooks.py", "notes.txt", "old files/x.py"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("never imported")
    assert sorted(code_files.read(directory).contents) == sorted(twist.FILES)


def test_the_digest_is_of_names_and_contents_and_not_of_the_place(directory: Path, tmp_path: Path) -> None:
    digest = code_files.read(directory).digest
    assert spec.CODE_DIGEST.fullmatch(digest)
    moved = shutil.copytree(directory, tmp_path / "elsewhere" / "copy")
    assert code_files.read(moved).digest == digest
    (moved / "README.md").write_text("Not code.")
    assert code_files.read(moved).digest == digest
    (moved / "modeling_twist.py").rename(moved / "other.py")
    (moved / "modeling_twist.py").write_text("")
    assert code_files.read(moved).digest != digest
    (directory / "parts" / "twisting.py").write_text("def twisted(x, *, by): return x\n")
    assert code_files.read(directory).digest not in (digest, code_files.read(moved).digest)


def test_a_file_that_nobody_names_counts_too_since_it_could_be_imported(directory: Path) -> None:
    digest = code_files.read(directory).digest
    (directory / "extra.py").write_text("x = 1\n")
    assert code_files.read(directory).digest != digest


def test_a_link_within_the_checkpoint_is_the_file_behind_it(directory: Path) -> None:
    digest = code_files.read(directory).digest
    content = (directory / "modeling_twist.py").read_bytes()
    (directory / "stored").write_bytes(content)
    (directory / "modeling_twist.py").unlink()
    (directory / "modeling_twist.py").symlink_to("stored")
    assert code_files.read(directory).digest == digest


def test_a_link_that_leads_outside_is_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret")
    (directory / "secret.py").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInput, match=r"secret\.py is a link to .*secret, expected a file within"):
        code_files.read(directory)


def test_a_folder_behind_a_link_is_not_entered(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.py").write_text("a secret")
    (directory / "parts" / "more").symlink_to(tmp_path / "outside", target_is_directory=True)
    assert sorted(code_files.read(directory).contents) == sorted(twist.FILES)


def test_too_much_code_is_refused(directory: Path) -> None:
    (directory / "large.py").write_bytes(b"#" * (5 << 20))
    with pytest.raises(InvalidInput, match="more than 4 MiB"):
        code_files.read(directory)
    (directory / "large.py").unlink()
    for number in range(300):
        (directory / f"file_{number}.py").write_text("")
    with pytest.raises(InvalidInput, match="304 files of Python code, expected at most 256"):
        code_files.read(directory)


@pytest.mark.parametrize(
    ("reference", "failure", "words"),
    [
        ("../../outside.Config", InvalidInput, "expected module.Class of a file beside config.json"),
        ("parts/twisting.Config", InvalidInput, "expected module.Class"),
        ("Config", InvalidInput, "expected module.Class"),
        (7, InvalidInput, "names 7 for AutoConfig"),
        ("missing.Config", InvalidInput, "there is no file missing.py"),
        ("other/model--configuration_twist.TwistConfig", Unsupported, "in another repository, other/model.*Put the"),
    ],
)
def test_what_configs_name_is_checked(
    directory: Path, reference: object, failure: type[EngineError], words: str
) -> None:
    name_in_auto_map(directory, reference)
    with pytest.raises(failure, match=words):
        code_files.read(directory)


@pytest.mark.parametrize("auto_map", ["modeling_twist.X", 7])
def test_an_auto_map_that_is_no_object_is_refused(directory: Path, auto_map: object) -> None:
    twist.change(directory / "config.json", {"model_type": "twist", "auto_map": auto_map})
    with pytest.raises(InvalidInput, match="expected an object"):
        code_files.read(directory)


def test_a_repository_may_name_itself(directory: Path, tmp_path: Path) -> None:
    name_in_auto_map(directory, "tiny-people/twist--configuration_twist.TwistConfig")
    code = code_files.read(directory, repository="tiny-people/twist")
    assert code.references["AutoConfig"] == (code_files.Reference(module="configuration_twist", name="TwistConfig"),)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    shutil.copy(directory / "config.json", snapshot)
    code.write(snapshot)
    again = code_files.of_snapshot(snapshot)
    assert again is not None
    assert again.digest == code.digest


def test_consent_to_a_checkpoint_that_has_no_use_for_it_is_refused(tmp_path: Path) -> None:
    tiny.save_model(tmp_path, "llama")
    with pytest.raises(InvalidInput, match=r"has an auto_map.*Leave --trust-remote-code away"):
        checkpoint.resolve_spec(str(tmp_path), trust_remote_code=f"sha256:{'0' * 64}")


def test_a_manifest_that_a_checkpoint_brings_along_gives_no_consent(directory: Path) -> None:
    code = code_files.read(directory)
    code.write(directory)
    with pytest.raises(InvalidInput, match=f"--trust-remote-code {code.digest}"):
        code_files.consented(directory, consent="")
    (directory / code_files.MANIFEST).write_text("[]")
    with pytest.raises(InvalidInput, match="JSON list, expected an object"):
        code_files.consented(directory, consent=code.digest)


@pytest.mark.parametrize("consent", ["main", "v1.0", COMMIT[:7], COMMIT.upper(), True, f"sha256:{'0' * 64}"])
def test_consent_to_a_hub_model_is_a_whole_commit(
    consent: str | bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InvalidInput, match=f"trust_remote_code is '{consent}'.*expected the 40 digits") as caught:
        checkpoint.resolve_spec("tiny-people/twist", trust_remote_code=consent)
    assert COMMIT not in str(caught.value)
    (tmp_path / "models--tiny-people--twist" / "refs").mkdir(parents=True)
    (tmp_path / "models--tiny-people--twist" / "refs" / "main").write_text(COMMIT)
    with pytest.raises(InvalidInput, match=f"it was at {COMMIT}"):
        checkpoint.resolve_spec("tiny-people/twist", trust_remote_code=consent)


def test_the_commit_of_the_consent_is_the_revision(tmp_path: Path) -> None:
    found = checkpoint.resolve_spec("tiny-people/twist", trust_remote_code=COMMIT)
    assert (found.revision, found.trust_remote_code) == (COMMIT, COMMIT)
    with pytest.raises(InvalidInput, match=f"revision of tiny-people/twist is 'main'.*{COMMIT}"):
        checkpoint.resolve_spec("tiny-people/twist", revision="main", trust_remote_code=COMMIT)


def test_no_consent_can_be_said_as_in_transformers() -> None:
    for nothing in (None, False, ""):
        assert checkpoint.resolve_spec("tiny-people/twist", trust_remote_code=nothing).trust_remote_code == ""


def test_a_gguf_file_has_no_code() -> None:
    with pytest.raises(InvalidInput, match="which has no code"):
        spec.ResolveSpec(source="/m.gguf", kind="gguf", trust_remote_code=f"sha256:{'0' * 64}")
