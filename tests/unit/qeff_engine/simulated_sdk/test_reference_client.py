"""A script for the real SDK runs unchanged on the simulated one, found by its root or by ``sys.path``."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.unit.qeff_engine.simulated_sdk import graphs

_CLIENT = Path(__file__).with_name("reference_client.py")


@pytest.mark.parametrize("found_by", ["root", "path"])
def test_a_client_of_the_published_surface_runs(tmp_path, compile_in, simulated_sdk_root, found_by):
    path = graphs.save(graphs.decoder(), tmp_path)
    assert compile_in(path, "-retained-state", "-aic-num-cores=4", specializations=graphs.SPECIALIZATIONS) == 0
    environ = {"PATH": os.environ["PATH"], "QAIC_SIM_THREADS": "1", "QAIC_SDK_ROOT": str(simulated_sdk_root)}
    if found_by == "path":
        folders = (simulated_sdk_root / "dev/lib" / platform.machine(), simulated_sdk_root / "dev/python")
        environ["PYTHONPATH"] = ":".join(map(str, folders))
    command = [sys.executable, str(_CLIENT), str(tmp_path / "qpc"), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["boards"] == [[0]], "the Standard has too few cores to be sliced over"
    assert said["devices"] == [[[0, True, 16], [1, True, 14]], [[0, True, 12], [1, True, 14]]]
    for name, ids in (("prefill", [5, 6, 7]), ("decode", [5, 6, 7, 8])):
        keys = graphs.EMBEDDING_VH[ids] @ graphs.KEY_HH
        expected = keys.sum(axis=0) @ graphs.EMBEDDING_VH.T
        np.testing.assert_allclose(said[name], expected, rtol=1e-4, atol=1e-4)
    assert said["refused"] == "Failed to run"
    assert "No matching dimension found" in done.stderr
    assert said["queued"] == [4 * graphs.VOCAB] * 6
    assert said["slicing"] == 11, "UNSUPPORTED"
