import json
import os
import subprocess
import sys

import huggingface_hub
import pytest

from qeff_engine import checkpoint, code_files
from qeff_engine.errors import Infrastructure, InvalidInput, Unsupported
from qeff_engine.stage import StageContext
from qeff_engine.stages import resolve
from tests import fake_hub, tiny, twist

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


def resolved(tmp_path, name=NAME, *, revision=None, trust_remote_code=None):
    out = tmp_path / "out"
    out.mkdir()
    said = []
    context = StageContext(out=out, work=tmp_path, emit=said.append)
    spec = checkpoint.resolve_spec(name, revision=revision, trust_remote_code=trust_remote_code)
    result = resolve.run(spec, context)
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


WITH_CODE = "tiny-people/twist"


@pytest.fixture(scope="module")
def twisted(tmp_path_factory):
    return twist.save(tmp_path_factory.mktemp("twisted"))


@pytest.fixture
def marker(tmp_path, monkeypatch):
    monkeypatch.setenv(twist.MARKER, str(tmp_path / "marker"))
    yield
    assert not (tmp_path / "marker").exists(), "the stage that downloads has run code"


@pytest.fixture
def hub_with_code(hub, twisted, marker):
    hub.repositories[WITH_CODE] = twisted
    return hub


def test_a_model_with_its_own_code_is_refused_with_the_commit_that_it_is_at(hub_with_code, tmp_path):
    with pytest.raises(InvalidInput, match=f"{WITH_CODE} at .*--trust-remote-code {fake_hub.COMMIT}"):
        resolved(tmp_path, WITH_CODE)
    assert not [path for _, path in hub_with_code.requests if path.endswith(".py")]


def test_a_commit_brings_its_code_along(hub_with_code, twisted, tmp_path):
    out, result = resolved(tmp_path, WITH_CODE, trust_remote_code=fake_hub.COMMIT)
    digest = code_files.read(twisted).digest
    assert (result.figures["commit"], result.figures["remote_code"]) == (fake_hub.COMMIT, digest)
    code = code_files.of_snapshot(out)
    assert code is not None
    assert code.digest == digest
    assert {name: content.decode() for name, content in code.contents.items()} == dict(twist.FILES)


def test_a_commit_is_where_the_branch_was_at_that_time_and_its_message_says_where_it_was_last(
    hub_with_code, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InvalidInput, match="--trust-remote-code"):
        resolved(tmp_path, WITH_CODE)
    with pytest.raises(InvalidInput, match=f"is 'main' for {WITH_CODE}.*it was at {fake_hub.COMMIT}"):
        checkpoint.resolve_spec(WITH_CODE, trust_remote_code="main")


def test_a_commit_that_the_hub_does_not_have_is_refused(hub_with_code, tmp_path):
    with pytest.raises(InvalidInput, match="has no revision 'ffff"):
        resolved(tmp_path, WITH_CODE, trust_remote_code="f" * 40)


def test_a_branch_that_is_called_like_a_commit_is_none(hub_with_code, tmp_path):
    hub_with_code.branches.add("f" * 40)
    with pytest.raises(InvalidInput, match="at ffff"):  # a file is kept under the commit that the hub says it is of
        resolved(tmp_path, WITH_CODE, trust_remote_code="f" * 40)


@pytest.mark.parametrize(("owner", "is_its_own"), [(WITH_CODE, True), ("other/model", False)])
def test_code_may_be_named_by_the_repository_itself_and_by_no_other(
    hub_with_code, twisted, tmp_path, owner, is_its_own
):
    repository = tmp_path / "named"
    repository.mkdir()
    for path in twisted.iterdir():
        (repository / path.name).symlink_to(path)
    (repository / "config.json").unlink()
    config = json.loads((twisted / "config.json").read_text())
    auto_map = {auto: f"{owner}--{place}" for auto, place in twist.AUTO_MAP.items()}
    twist.change(repository / "config.json", {**config, "auto_map": auto_map})
    hub_with_code.repositories[WITH_CODE] = repository
    if is_its_own:
        out, _ = resolved(tmp_path, WITH_CODE, trust_remote_code=fake_hub.COMMIT)
        assert code_files.of_snapshot(out) is not None
    else:
        with pytest.raises(Unsupported, match="in another repository, other/model"):
            resolved(tmp_path, WITH_CODE, trust_remote_code=fake_hub.COMMIT)
