"""The container files say what is true: their entry points, run as plain processes with the same environment."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from farm import settings as farm_settings
from farm.home import valkey
from tests.databases import empty_postgresql

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
LONG_RUNNING = ("scheduler", "host", "device-0", "device-1")
LIMIT_S = 120.0  # a deadline, not a measurement


class Stack:
    """The services as processes of this machine: one PostgreSQL, one Valkey, one home, one simulated SDK."""

    def __init__(self, directory: Path, *, database_url: str, broker_url: str, sdk_root: Path) -> None:
        self._directory = directory
        self._own = {
            "FARM_HOME": str(directory / "home"),
            "FARM_DATABASE_URL": database_url,
            "FARM_BROKER_URL": broker_url,
        }
        self._sdk_root = sdk_root

    def environ(self, service: str) -> dict[str, str]:
        """The service's environment, with this machine's addresses for the stack's."""
        declared = set(SERVICES[service]["environment"])
        assert {*self._own, "FARM_HOST"} == declared
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("FARM_", "QAIC_"))}
        # The worker's image sets QAIC_SDK_ROOT; the farm's image has no SDK.
        # A random model's near ties are not what this is about, so programs compute in fp32.
        sdk = {"QAIC_SDK_ROOT": str(self._sdk_root), "QAIC_SIM_ACTIVATIONS": "fp32"}
        sdk = sdk if service in LONG_RUNNING[1:] else {}
        return {**plain, **self._own, "FARM_HOST": SERVICES[service]["environment"]["FARM_HOST"], **sdk}

    def start(self, service: str) -> subprocess.Popen[bytes]:
        """Start a service's command."""
        command = SERVICES[service]["command"]
        assert command[0] == "python"
        log = (self._directory / f"{service}.log").open("wb")
        with log:
            return subprocess.Popen(
                [sys.executable, *command[1:]], env=self.environ(service), cwd=ROOT, stdout=log, stderr=log
            )

    def farm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A ``farm`` command in the container that the page shows for it."""
        return subprocess.run(
            [sys.executable, "-m", "farm", *arguments],
            check=False,
            env=self.environ("farm"),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )


@contextlib.contextmanager
def broker(directory: Path) -> Iterator[str]:
    """URL of a Valkey server with the options of the compose file that matter."""
    settings = farm_settings.load(home=str(directory), environ={})
    settings.run_dir.mkdir(parents=True)
    with subprocess.Popen(valkey.command(settings), stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + LIMIT_S
            while not valkey.answers(settings):
                assert time.monotonic() < deadline, "the broker does not answer"
                time.sleep(0.02)
            yield settings.broker_url
        finally:
            server.terminate()


@pytest.fixture
def stack(tmp_path: Path, postgresql_url: sa.URL) -> Iterator[Stack]:
    """Database and broker run; nothing else does."""
    sdk_root = tmp_path / "sdk"
    # As the worker's image installs it.
    devices = re.search(r"^ARG DEVICES=(\S+)$", dockerfile("worker"), re.MULTILINE)
    assert devices is not None
    subprocess.run(
        [sys.executable, "-m", "qeff_engine.simulated_sdk", "install", sdk_root, "--devices", devices.group(1)],
        check=True,
        capture_output=True,
    )
    with broker(tmp_path / "broker") as broker_url:
        url = empty_postgresql(postgresql_url)
        yield Stack(tmp_path, database_url=url, broker_url=broker_url, sdk_root=sdk_root)


def dockerfile(name: str) -> str:
    """The text of an image's description."""
    return (ROOT / "docker" / f"{name}.Dockerfile").read_text()


def test_the_stack_runs_a_sweep_on_postgresql(stack: Stack, model: Path) -> None:
    assert stack.start("migrate").wait(LIMIT_S) == 0
    running = [stack.start(service) for service in LONG_RUNNING]
    try:
        deadline = time.monotonic() + LIMIT_S
        while len(json.loads(stack.farm("devices", "--json").stdout)) < 2:
            assert time.monotonic() < deadline, "the devices do not register"
        done = stack.farm("submit", "--model", str(model), "--cores", "8,16", "--wait", "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(stack.farm("report", "s1", "--json").stdout)
        assert [row["equal"] for row in report["rows"]] == [True, True]
        assert all(process.poll() is None for process in running)
    finally:
        for process in running:
            process.terminate()
        codes = [process.wait(LIMIT_S) for process in running]
    assert codes == [0] * len(running)


@pytest.mark.parametrize("name", ["farm", "worker"])
def test_an_image_copies_what_exists_and_installs_an_extra_that_exists(name: str) -> None:
    text = dockerfile(name)
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for word in line.split()]
    assert copied
    assert [word for word in copied if not (ROOT / word).exists()] == []
    packages = {"farm", "workers", "qeff_engine", "migrations"}
    assert packages <= set(copied)
    extras = re.search(r"'\.\[([a-z,]+)\]'", text)
    assert extras is not None
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.group(1).split(",")) <= set(known)


def test_every_service_of_ours_is_built_from_an_image_of_this_folder() -> None:
    for name, service in SERVICES.items():
        if "build" in service:
            assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).is_file(), name
        else:
            assert "image" in service, name
