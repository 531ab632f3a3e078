"""The module ``QAicApi_pb2``: the message in which a runtime describes a program's bindings, and its constants.

Clients only parse what the same SDK's runtime has serialized, so field numbers are this module's own.
"""

from __future__ import annotations

from qeff_engine.simulated_sdk import messages

FLOAT_TYPE = 0
FLOAT_16_TYPE = 1
INT8_Q_TYPE = 2
UINT8_Q_TYPE = 3
INT16_Q_TYPE = 4
INT32_Q_TYPE = 5
INT32_I_TYPE = 6
INT64_I_TYPE = 7
INT8_TYPE = 8
BFLOAT16_TYPE = 11

BUFFER_IO_TYPE_INPUT = 0
BUFFER_IO_TYPE_OUTPUT = 1

_TYPES = {name: number for name, number in globals().items() if name.endswith("_TYPE")}
_DIRECTIONS = {"BUFFER_IO_TYPE_INPUT": BUFFER_IO_TYPE_INPUT, "BUFFER_IO_TYPE_OUTPUT": BUFFER_IO_TYPE_OUTPUT}

_built = messages.build(
    "aicapi",
    enums={"bufferIoDataTypeEnum": _TYPES, "bufferIoDirectionEnum": _DIRECTIONS},
    messages={
        "TensorShape": {"type": (1, "bufferIoDataTypeEnum"), "dims": (2, "*int64")},
        "IoShapes": {"shapes": (1, "*TensorShape")},
        "IoBinding": {
            "name": (1, "string"),
            "index": (2, "uint32"),
            "type": (3, "bufferIoDataTypeEnum"),
            "dir": (4, "bufferIoDirectionEnum"),
            "dims": (5, "*int64"),
            "size": (6, "uint64"),
            "is_partial_buf_allowed": (7, "bool"),
        },
        "IoSet": {"name": (1, "string"), "bindings": (2, "*IoBinding")},
        "IoDesc": {"selected_set": (1, "IoSet"), "allowed_shapes": (2, "*IoShapes")},
    },
)
TensorShape = _built["TensorShape"]
IoShapes = _built["IoShapes"]
IoBinding = _built["IoBinding"]
IoSet = _built["IoSet"]
IoDesc = _built["IoDesc"]

PUBLIC = (*_TYPES, *_DIRECTIONS, *_built)
