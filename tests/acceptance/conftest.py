"""Fixtures of these tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.databases import postgresql_url
from tests.s3_server import s3_server

__all__ = ["model", "postgresql_url", "s3_server"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama's checkpoint, made in a process of its own: this one needs no torch."""
    directory = tmp_path_factory.mktemp("model") / "tiny-llama"
    program = "import sys, pathlib; from tests import tiny; tiny.save_model(pathlib.Path(sys.argv[1]), 'llama')"
    subprocess.run([sys.executable, "-c", program, directory], check=True, capture_output=True)
    return directory
