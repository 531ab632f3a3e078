"""What native and Python code prints while a block runs: the runtime tells reasons only this way."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


class Captured:
    """Text printed inside a :func:`captured` block; complete when the block has ended."""

    text = ""


@contextlib.contextmanager
def captured() -> Iterator[Captured]:
    """Collect file descriptors 1 and 2 and ``sys.stdout`` and ``sys.stderr``, and pass them on to stderr at the end.

    Descriptors, since the runtime is a native library; Python's streams too, since they need not end in them. Not
    for use while other threads print.
    """
    result = Captured()
    with tempfile.TemporaryFile() as sink:
        saved = [(number, os.dup(number)) for number in (1, 2)]
        stream = os.fdopen(os.dup(sink.fileno()), "w", encoding="utf-8", errors="replace")
        try:
            for number, _ in saved:
                os.dup2(sink.fileno(), number)
            with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
                yield result
        finally:
            stream.close()
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
            sink.seek(0)
            result.text = sink.read().decode(errors="replace")
    if result.text:
        sys.stderr.write(result.text)
