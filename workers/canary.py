"""Notices that a node gets no messages though it lives: a connection can die without anybody being told.

A process and its heartbeat say nothing about that. What does is a message that was sent, and sent again, to an idle
node that never acted on it.
"""

from __future__ import annotations

from farm.lifecycle.succession import Key


class Canary:
    """Remembers since when messages should have come.

    Args:
        patience_s: after how long an idle node counts as deaf; longer than it takes until messages are sent again.
    """

    def __init__(self, *, patience_s: float) -> None:
        self._patience_s = patience_s
        self._since: dict[Key, float] = {}

    def is_deaf(self, sent: frozenset[Key], *, busy: int, now: float) -> bool:
        """Whether the node should be started again.

        Args:
            sent: attempts that the node should have heard of and has not claimed.
            busy: attempts that it looks after.
            now: monotonic time.
        """
        if busy:
            self._since.clear()  # it may have no room for more
            return False
        self._since = {key: self._since.get(key, now) for key in sent}
        return any(now - since > self._patience_s for since in self._since.values())
