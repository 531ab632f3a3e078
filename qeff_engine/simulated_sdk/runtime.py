"""The module ``qaicrt``: programs on simulated devices, with the names and the behaviour that clients rely on.

Activation takes cores, memory and a channel of each device and fails at once when they are not free. Extension:
:func:`simulatedTimeNs`, a clock that only the predicted time of executions moves.
"""

from __future__ import annotations

from qeff_engine.simulated_sdk.buffers import BufferDimensionsVecRef, QBuffer
from qeff_engine.simulated_sdk.device_objects import Context, QIDList, Util
from qeff_engine.simulated_sdk.execution_objects import ExecObj, Queue
from qeff_engine.simulated_sdk.inference_set import InferenceSet
from qeff_engine.simulated_sdk.program_objects import BufferMapping, Program, QAicProgramProperties, Qpc
from qeff_engine.simulated_sdk.runtime_log import simulatedTimeNs
from qeff_engine.simulated_sdk.sdk_root import bind
from qeff_engine.simulated_sdk.status import BufferIoTypeEnum, QDevStatus, QLogLevel, QStatus

__all__ = [
    "BufferDimensionsVecRef",
    "BufferIoTypeEnum",
    "BufferMapping",
    "Context",
    "ExecObj",
    "InferenceSet",
    "Program",
    "QAicProgramProperties",
    "QBuffer",
    "QDevStatus",
    "QIDList",
    "QLogLevel",
    "QStatus",
    "Qpc",
    "Queue",
    "Util",
    "bind",
    "simulatedTimeNs",
]

PUBLIC = tuple(name for name in __all__ if name != "bind")
