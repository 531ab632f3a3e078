"""A real server that speaks S3, for tests: moto in a process of its own, on a port that is free."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farm.store.remote import Remote

LIMIT_S = 60.0
CHUNK_BYTES = 1 << 20  # of what the tests read at once
SECRET = "hush-hush"  # stands in no message and no log
_RUNNING = re.compile(r"Running on http://127\.0\.0\.1:(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class S3Server:
    """A server that runs."""

    endpoint: str
    log: Path

    def options(self) -> dict[str, Any]:
        """What fsspec must know to reach it."""
        return {"key": "farm", "secret": SECRET, "endpoint_url": self.endpoint, "client_kwargs": {"region_name": "x"}}

    def num_requests(self, method: str, path: str) -> int:
        """How often something was asked for whose path ends so; the log has colours."""
        return len(re.findall(rf'{method} [^ "?]*{re.escape(path)} HTTP', self.log.read_text()))


@contextlib.contextmanager
def running(log: Path) -> Iterator[S3Server]:
    """A server until the end of the block."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        yield S3Server(endpoint=f"http://127.0.0.1:{_port(log)}", log=log)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server of this test process."""
    with running(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


def _port(log: Path) -> int:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        found = _RUNNING.search(log.read_text())
        if found is not None:
            with contextlib.suppress(urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/moto-api/", timeout=5).close()
                return int(found[1])
        time.sleep(0.05)
    raise AssertionError(f"the S3 server did not start: {log.read_text()}")


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """URL of a place in a fresh bucket."""
    return fresh_bucket(s3_server)


def fresh_bucket(server: S3Server) -> str:
    """URL of a place in a bucket that was made just now."""
    import fsspec

    name = f"b{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3", **server.options(), skip_instance_cache=True).mkdir(name)
    return f"s3://{name}/farm"


@pytest.fixture
def remote(s3_server: S3Server, bucket: str) -> Remote:
    """The place in the bucket."""
    return Remote(bucket, options=s3_server.options(), chunk_bytes=CHUNK_BYTES)
