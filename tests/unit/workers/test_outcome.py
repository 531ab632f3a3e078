"""What the end of a stage process means."""

from __future__ import annotations

import signal

import pytest

from farm.records import ArtifactRecord
from qeff_engine.errors import FailureClass
from workers.outcome import Ending, of_process

ARTIFACT = {"digest": "d" * 64, "stage": "export", "num_bytes": 3, "num_files": 1}


def test_a_published_artifact_is_a_success() -> None:
    found = of_process({"artifact": ARTIFACT, "figures": {"x": 1}}, exit_code=0, out_of_memory=False)
    assert found.ending is Ending.SUCCEEDED
    assert found.artifact == ArtifactRecord(**ARTIFACT)
    assert found.figures == {"x": 1}


def test_the_last_words_of_a_process_count_more_than_its_exit_code() -> None:
    said = {"failure_class": "unsupported", "message": "no such layer"}
    found = of_process(said, exit_code=-signal.SIGKILL, out_of_memory=True)
    assert (found.failure_class, found.message, found.exit_code) == (FailureClass.UNSUPPORTED, "no such layer", -9)


@pytest.mark.parametrize(
    ("exit_code", "out_of_memory", "failure_class", "words"),
    [
        (-signal.SIGKILL, False, FailureClass.WORKER_LOST, "killed with SIGKILL"),
        (-signal.SIGKILL, True, FailureClass.OUT_OF_MEMORY_HOST, "ran out of memory"),
        (-signal.SIGTERM, True, FailureClass.WORKER_LOST, "killed with SIGTERM"),
        (-signal.SIGSEGV, False, FailureClass.BUG, "crashed with SIGSEGV"),
        (-signal.SIGABRT, True, FailureClass.BUG, "crashed with SIGABRT"),
        (-99, False, FailureClass.WORKER_LOST, "killed with signal 99"),
        (3, False, FailureClass.BUG, "exit code 3 without a word"),
        (0, False, FailureClass.BUG, "exit code 0 without a word"),
    ],
)
def test_an_end_without_words_is_judged_by_its_code(
    exit_code: int, out_of_memory: bool, failure_class: FailureClass, words: str
) -> None:
    found = of_process(None, exit_code=exit_code, out_of_memory=out_of_memory)
    assert (found.ending, found.failure_class, found.exit_code) == (Ending.FAILED, failure_class, exit_code)
    assert words in found.message
