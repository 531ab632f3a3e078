"""Attempts of a node whose store is in S3: real stage processes, which never see the credentials."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm.states import JobState
from tests import small_sweep
from tests.integration.attempt_node import AttemptNode, attempt_node
from tests.s3_server import SECRET, S3Server


@pytest.fixture
def node(tmp_path: Path, s3_server: S3Server, bucket: str) -> Iterator[AttemptNode]:
    """A node that has the credentials in its environment."""
    credentials = {
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "AWS_ACCESS_KEY_ID": "farm",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with attempt_node(tmp_path, store_url=bucket) as node:
        environ = {**node.workplace.environ, **credentials}
        node.workplace = dataclasses.replace(node.workplace, environ=environ)
        yield node


def test_a_stage_reads_what_another_host_made_and_sees_no_credentials(node: AttemptNode, tmp_path: Path) -> None:
    facts = tmp_path / "facts"
    resolve, export, *_ = node.submit(small_sweep.plan(f"environment={facts}", cores=(8,)))
    assert node.run(resolve).state is JobState.SUCCEEDED
    seen = json.loads(facts.read_text())
    assert SECRET not in json.dumps(seen)
    assert "AWS_ACCESS_KEY_ID" not in seen["environ"]
    shutil.move(node.settings.store, tmp_path / "the other host's")
    node.admit()
    assert node.run(export).state is JobState.SUCCEEDED, node.job(export)
    assert SECRET not in node.log(resolve) + node.log(export)
    assert node.leftovers() == []


def test_an_artifact_that_is_lost_at_the_url_fails_the_attempt_with_its_name(
    node: AttemptNode, s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    import fsspec

    resolve, export, *_ = node.submit(small_sweep.plan("model", cores=(8,)))
    node.run(resolve)
    node.admit()
    shutil.move(node.settings.store, tmp_path / "the other host's")
    fsspec.filesystem("s3", **s3_server.options(), skip_instance_cache=True).rm(bucket, recursive=True)
    node.run(export)
    (attempt,) = node.attempts(export)
    assert attempt.failure_class == "infrastructure"
    assert f"The store {bucket} has no artifact {str(node.job(resolve).artifact)[:12]}" in (attempt.message or "")
