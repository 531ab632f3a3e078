"""Programs that are run again and again on the same inputs, of which only the clock is of interest.

Every call of a program takes the same time whatever its numbers are, so that a tool that measures pace computes each
specialization once, on one activation, and lets the simulated clock run for all other calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from qeff_engine.simulated_sdk.network_description import Network
from qeff_engine.simulated_sdk.program_objects import Program
from qeff_engine.simulated_sdk.status import QStatus

if TYPE_CHECKING:
    from qeff_engine.simulated_sdk.execution import Execution

Array = npt.NDArray[Any]


class ComputedOnce(Program):
    """A program whose later calls give the outputs of the first one of their specialization."""

    def _start(self) -> QStatus:
        status = super()._start()
        if status == QStatus.QS_SUCCESS:
            self.execution = cast("Execution", _Repeating(self.network, first=self.execution))
        return status


class NeverComputed(Program):
    """A program that takes its share of a device and gives zeros."""

    def _start(self) -> QStatus:
        self.execution = cast("Execution", _Repeating(self.network, first=None))
        return QStatus.QS_SUCCESS


class _Repeating:
    """In place of an execution."""

    def __init__(self, network: Network, *, first: Execution | None) -> None:
        self._outputs = {binding.graph_name: binding for binding in network.outputs}
        self._first = first
        self._known: dict[int, dict[str, Array]] = {}

    def run(self, passed: Mapping[str, Array], *, specialization: int, wanted: set[str]) -> dict[str, Array]:
        """What the first call of this specialization gave."""
        if specialization not in self._known:
            if self._first is not None:
                found = self._first.run(passed, specialization=specialization, wanted=wanted)
            else:
                found = {
                    name: np.zeros(self._outputs[name].shapes[specialization], self._outputs[name].graph_type.dtype)
                    for name in wanted
                }
            self._known[specialization] = found
        return self._known[specialization]
