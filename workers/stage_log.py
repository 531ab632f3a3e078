"""What a stage prints, on its way from the pipe to the attempt's file: bounded, and without what must stay secret."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import time
from pathlib import Path

_logger = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 16
_MOST_AT_ONCE_BYTES = 1 << 22  # so that a stage that prints for ever does not keep its node from anything else
_TAIL_BYTES = 1 << 16  # of a log that is too long, the end is kept, too: it says how it ended
_BRAKE_S = 0.005  # a reader that is slow makes a writer slow, who would fill pipe after pipe for nothing
_PIPE_BYTES = 1 << 20  # a stage can print that much while its node waits for the database

# Tokens of the Hugging Face hub, and passwords in URLs such as those of proxies.
_SECRET = re.compile(rb"\bhf_[A-Za-z0-9]{16,}|(?<=://)[^\s/:@]{1,200}:[^\s/@]{1,200}(?=@)")
_HIDDEN = b"***"
# What may be the beginning of such a thing at the end of a chunk.
_BEGINNING = re.compile(rb"(?:\bh|\bhf|\bhf_[A-Za-z0-9]{0,200}|:/{0,2}|://[^\s/@]{0,400})\Z")


class StageLog:
    """The log of one attempt.

    Args:
        path: its file.
        limit_bytes: how much is kept of the beginning.
    """

    def __init__(self, path: Path, *, limit_bytes: int) -> None:
        self._path = path
        self._file: int | None = None
        self._limit_bytes = limit_bytes
        self._left_bytes = limit_bytes
        self._held = b""
        self._tail = b""
        self._num_dropped = 0
        self._is_broken = False

    def take(self, descriptor: int) -> bool:
        """Keep what can be read now without waiting; False at the end of the pipe."""
        taken = 0
        while taken < _MOST_AT_ONCE_BYTES:
            try:
                chunk = os.read(descriptor, _CHUNK_BYTES)
            except BlockingIOError:
                break
            if not chunk:
                return False
            taken += len(chunk)
            self._keep(chunk)
        if self._tail:
            time.sleep(_BRAKE_S)
        return True

    def close(self) -> None:
        """Write what is still to be written."""
        self._put(_SECRET.sub(_HIDDEN, self._held))
        if self._num_dropped:
            left_out = f"\n[{self._num_dropped} bytes are left out here: {self._limit()}]\n"
            self._write(left_out.encode())
        self._write(self._tail)
        if self._file is not None:
            os.close(self._file)

    def end(self) -> str:
        """The last part of what was written."""
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().decode(errors="replace")
        return ""

    def _keep(self, chunk: bytes) -> None:
        text = self._held + chunk
        beginning = _BEGINNING.search(text, max(0, len(text) - _CHUNK_BYTES))
        cut = beginning.start() if beginning else len(text)
        self._held = text[cut:]
        self._put(_SECRET.sub(_HIDDEN, text[:cut]))

    def _put(self, text: bytes) -> None:
        if self._left_bytes:
            self._write(text[: self._left_bytes])
            text, self._left_bytes = text[self._left_bytes :], max(0, self._left_bytes - len(text))
            if text:
                self._write(f"\n[{self._limit()}; of what follows only the end will be kept]\n".encode())
        if text:
            tail = self._tail + text
            self._tail = tail[-_TAIL_BYTES:]
            self._num_dropped += len(tail) - len(self._tail)

    def _limit(self) -> str:
        return f"the log of an attempt is limited to {self._limit_bytes} bytes"

    def _write(self, text: bytes) -> None:
        """Add to the file. A full disk costs lines of the log and nothing else."""
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            while text:
                text = text[os.write(self._file, text) :]
        except OSError as error:
            if not self._is_broken:
                _logger.warning("the log %s cannot be written: %s", self._path, error)
            self._is_broken = True


def widen(pipe: int) -> None:
    """Let a pipe hold more, where the system can do that and allows it."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
