"""Which model of a command line a consent to run code belongs to."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from farm.cli import _models, _parser
from farm.errors import Usage
from farm.sweep import SweepModel
from qeff_engine import checkpoint
from qeff_engine.errors import InvalidInput
from tests.farm_home import write_checkpoint

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


def read(*words: object) -> tuple[SweepModel, ...]:
    parser = _parser.command_parser("submit", description="")
    _models.add_arguments(parser)
    return _models.read(_parser.parse(parser, [*map(str, words)], defaults=argparse.Namespace()))


def consents(*words: object) -> list[str]:
    return [model.source.trust_remote_code for model in read(*words)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint with code, which ends whoever runs it."""
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    made = write_checkpoint(tmp_path / "own", config=config)
    (made / "own.py").write_text("raise SystemExit('the code was run')\n")
    return made


@pytest.fixture
def digest(directory: Path) -> str:
    return checkpoint.code_digest(directory)


def test_without_the_option_no_code_is_run(directory: Path) -> None:
    assert consents("--model", directory, "--model", "org/name") == ["", ""]


def test_a_commit_is_the_revision_of_the_one_model_and_needs_no_asking_when(directory: Path) -> None:
    (model,) = read("--model", "org/name", "--trust-remote-code", COMMIT)
    assert (model.source.revision, model.source.trust_remote_code, model.source.fingerprint) == (COMMIT, COMMIT, "")
    assert model.identity == f"org/name@{COMMIT}"


def test_several_consents_go_to_the_models_that_they_name(directory: Path, digest: str, tmp_path: Path) -> None:
    plain = write_checkpoint(tmp_path / "plain")
    models = ("--model", plain, "--model", directory, "--model", f"org/name@{COMMIT}", "--model", "org/name@main")
    assert consents(*models, "--trust-remote-code", COMMIT, "--trust-remote-code", digest) == ["", digest, COMMIT, ""]
    assert consents(*models, "--trust-remote-code", digest) == ["", digest, "", ""]


def test_a_consent_that_belongs_to_no_model_is_refused_with_what_there_is(directory: Path, digest: str) -> None:
    models = ("--model", directory, "--model", f"org/name@{COMMIT}")
    with pytest.raises(Usage, match=f"{OTHER} belongs to none of 2 models.*id@COMMIT"):
        read(*models, "--trust-remote-code", OTHER)
    wrong = f"sha256:{'0' * 64}"
    with pytest.raises(Usage, match=rf"{wrong} belongs to none.*{directory} has {digest}"):
        read(*models, "--trust-remote-code", wrong)


@pytest.mark.parametrize("consent", ["main", COMMIT[:12], COMMIT])
def test_what_is_no_digest_of_a_directorys_code_is_refused_with_the_digest(
    consent: str, directory: Path, digest: str
) -> None:
    with pytest.raises(InvalidInput, match=f"trust_remote_code is '{consent}'.*Read the code first.*{digest}"):
        read("--model", directory, "--trust-remote-code", consent)
