"""Status codes and other enumerations of the runtime's surface. Standard library only."""

from __future__ import annotations

import enum


class QStatus(enum.IntEnum):
    """What a runtime call answers."""

    QS_SUCCESS = 0
    QS_PERM = 1
    QS_AGAIN = 2
    QS_NOMEM = 3
    QS_BUSY = 4
    QS_NODEV = 5
    QS_INVAL = 6
    QS_NOSPC = 7
    QS_BADFD = 8
    QS_TIMEDOUT = 9
    QS_PROTOCOL = 10
    QS_UNSUPPORTED = 11
    QS_DATA_CRC_ERROR = 12
    QS_DEV_ERROR = 300
    QS_ERROR = 500


class QLogLevel(enum.IntEnum):
    """From which weight on the runtime prints its messages."""

    QL_DEBUG = 0
    QL_INFO = 1
    QL_WARN = 2
    QL_ERROR = 3


class QDevStatus(enum.IntEnum):
    """State of a device."""

    QDS_INITIALIZING = 0
    QDS_READY = 1
    QDS_ERROR = 2


class BufferIoTypeEnum(enum.IntEnum):
    """Direction of a buffer, seen from the device."""

    BUFFER_IO_TYPE_INPUT = 0
    BUFFER_IO_TYPE_OUTPUT = 1
