"""Queued calls on the simulated SDK, through the surface that a card's runtime has."""

from __future__ import annotations

import numpy as np
import pytest

from qeff_engine import errors
from qeff_engine.sdk import devices, location
from qeff_engine.sdk.queued import QueuedSession
from qeff_engine.simulated_sdk import compiler_cli
from tests.unit.qeff_engine.simulated_sdk import graphs

X = {"x": np.ones((2, 64), np.float32)}


def free_cores(sdk):
    return devices.discover(sdk)[0].nsp_free


def test_activations_hold_their_cores_and_calls_are_counted(program, simulated_sdk_root):
    sdk = location.find(simulated_sdk_root)
    session = QueuedSession(sdk, program=program, qid=0, set_size=3, activations=2)
    with session:
        assert free_cores(sdk) == 8
        pace = session.pace([X, {"x": X["x"] * 2}], outputs=("y",))
        assert pace.num_calls == 24
        assert pace.calls_s == pytest.approx(24 / pace.total_s)
        assert pace.total_s / 24 <= pace.latency_s <= pace.total_s
    assert free_cores(sdk) == 16
    with pytest.raises(errors.InvalidInput, match="not active"):
        session.pace([X], outputs=("y",))


def test_more_activations_than_cores_are_a_lost_device(program, simulated_sdk_root):
    sdk = location.find(simulated_sdk_root)
    session = QueuedSession(sdk, program=program, qid=0, set_size=1, activations=5)
    with pytest.raises(errors.DeviceLost, match=r"activate the program 5 times on device 0.*NSP resources"), session:
        pass
    assert free_cores(sdk) == 16


def test_programs_with_states_or_several_shapes_are_refused(tmp_path, simulated_sdk_root):
    path = graphs.save(graphs.decoder(), tmp_path)
    command = graphs.command(path, "-retained-state", specializations=graphs.SPECIALIZATIONS)
    assert compiler_cli.main(command, root=simulated_sdk_root) == 0
    with pytest.raises(errors.InvalidInput, match="2 shapes and 1 retained states"):
        QueuedSession(location.find(simulated_sdk_root), program=tmp_path / "qpc", qid=0, set_size=1, activations=1)
