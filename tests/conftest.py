"""What several packages' tests share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No test fails for the machine being busy.
settings.register_profile("farm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("farm")


@pytest.fixture(scope="session")
def simulated_sdk_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated SDK with an Ultra SoC (qid 0, 16 cores) and a Standard (qid 1, 14 cores).

    One for the whole test process, since a process can load the runtime of one SDK only.
    """
    root = tmp_path_factory.mktemp("sdk") / "qti-aic"
    subprocess.run(
        [sys.executable, "-m", "qeff_engine.simulated_sdk", "install", root, "--devices", "ultra:1,standard:1"],
        check=True,
        capture_output=True,
    )
    return root


@pytest.fixture
def fp32_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated programs compute in fp32, so that a tiny model's near ties are decided as the original decides them."""
    monkeypatch.setenv("QAIC_SIM_ACTIVATIONS", "fp32")
