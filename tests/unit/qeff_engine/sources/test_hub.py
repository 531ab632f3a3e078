import json
import os
import subprocess
import sys

import huggingface_hub
import pytest

from qeff_engine import checkpoint
from qeff_engine.errors import Infrastructure, InvalidInput
from qeff_engine.stage import StageContext
from qeff_engine.stages import resolve
from tests import fake_hub, tiny

NAME = "tiny-people/tiny-llama"
TOKEN = "hf_very_secret"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("source"), "llama", max_shard_size="40KB")


@pytest.fixture
def hub(source, tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    repository.mkdir()
    for path in source.iterdir():
        (repository / path.name).symlink_to(path)
    (repository / "pytorch_model.bin").write_bytes(b"pickle")
    (repository / "modeling_tiny.py").write_text("raise SystemExit")
    (repository / "README.md").write_text("A model.")
    with fake_hub.running() as running:
        running.repositories[NAME] = repository
        # Read from the environment when huggingface_hub is imported.
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.url)
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def resolved(tmp_path, name=NAME, *, revision=None):
    out = tmp_path / "out"
    out.mkdir()
    said = []
    context = StageContext(out=out, work=tmp_path, emit=said.append)
    result = resolve.run(checkpoint.resolve_spec(name, revision=revision), context)
    assert TOKEN not in json.dumps([event.to_json() for event in said] + [result.figures])
    return out, result


def test_snapshot_has_the_whole_checkpoint_and_no_code_or_pickle(hub, source, tmp_path):
    out, result = resolved(tmp_path)
    assert {path.name for path in out.iterdir()} == {path.name for path in source.iterdir()}
    for path in source.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    asked = {path.rpartition("/")[2] for _, path in hub.requests}
    assert not asked & {"pytorch_model.bin", "modeling_tiny.py", "README.md"}
    assert result.figures["commit"] == fake_hub.COMMIT
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_every_file_is_taken_from_the_commit_that_the_branch_was_at(hub, tmp_path):
    resolved(tmp_path, revision="main")
    files = [path for _, path in hub.requests if "/resolve/" in path]
    assert files
    assert all(f"/resolve/{fake_hub.COMMIT}/" in path for path in files)


def test_a_commit_that_was_fetched_once_needs_no_hub(hub, tmp_path):
    out, _ = resolved(tmp_path, revision=fake_hub.COMMIT)
    out.rename(tmp_path / "first")
    hub.is_down = True
    again, _ = resolved(tmp_path, revision=fake_hub.COMMIT)
    assert {path.name for path in again.iterdir()} == {path.name for path in (tmp_path / "first").iterdir()}


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("tiny-people/tiny-lama", None, "There is no tiny-people/tiny-lama on the hub"),
        (NAME, "v9", "tiny-people/tiny-llama has no revision 'v9'"),
    ],
)
def test_what_the_hub_does_not_have_is_invalid_input(hub, tmp_path, name, revision, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        resolved(tmp_path, name, revision=revision)
    assert TOKEN not in str(caught.value)


def test_a_gated_model_says_how_to_get_access(hub, tmp_path):
    hub.gated.add(NAME)
    with pytest.raises(InvalidInput, match=r"is gated.*HF_TOKEN"):
        resolved(tmp_path)


def test_a_repository_with_pickle_alone_says_how_to_convert(hub, tmp_path):
    for path in hub.repositories[NAME].glob("model*"):
        path.unlink()
    with pytest.raises(InvalidInput, match=r"tiny-people/tiny-llama at 0123456789.* is no whole checkpoint"):
        resolved(tmp_path)


def test_a_hub_that_fails_may_be_tried_again(hub, tmp_path):
    hub.is_down = True
    with pytest.raises(Infrastructure, match="cannot be reached for tiny-people/tiny-llama") as caught:
        resolved(tmp_path)
    assert TOKEN not in str(caught.value)


def test_endpoint_and_offline_mode_come_from_the_environment(hub, tmp_path):
    command = [sys.executable, "-m", "qeff_engine", "resolve", "--source", NAME, "--out", str(tmp_path / "snapshot")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}
    offline = subprocess.run(
        command, env={**environment, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    assert offline.returncode == 1
    assert "HF_HUB_OFFLINE is set" in offline.stdout + offline.stderr
    subprocess.run(command, env=environment, capture_output=True, check=True)
    assert checkpoint.inspect(str(tmp_path / "snapshot")).files
