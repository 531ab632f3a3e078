"""Hearing from the kernel that a file is written to: inotify(7), so on Linux only."""

from __future__ import annotations

import select
from pathlib import Path


class FileWatch:
    """Watches a file, under any name it gets, until :meth:`close`; a file that takes its place is not watched.

    Args:
        path: of the file.

    Raises:
        OSError: there is no such file; or the kernel has no inotify, or no more of it for this user
            (``fs.inotify.max_user_instances``).
    """

    def __init__(self, path: Path) -> None:
        try:
            import inotify_simple
        except ImportError as error:  # it is installed on Linux only
            raise OSError("this system has no inotify") from error
        self._events = inotify_simple.INotify()
        try:
            self._events.add_watch(path, inotify_simple.flags.MODIFY)
        except OSError:
            self._events.close()
            raise

    def wait(self, limit_s: float) -> None:
        """Wait until somebody has written since :meth:`written` was asked, for ``limit_s`` at most."""
        select.select([self._events], [], [], limit_s)

    def written(self) -> bool:
        """Whether somebody has written since this was asked last."""
        return any(True for _ in self._events.read(timeout=0))

    def close(self) -> None:
        """Watch no more."""
        self._events.close()
