"""A scheduler that stops itself when it first sends: ``python -m tests.halting_scheduler WHEN FILE``.

``before``: what was decided is committed, and no message has left. ``after``: the broker has the messages, and the
outbox has them still. It says in FILE which jobs these are of, stops as with SIGSTOP, and goes on with SIGCONT.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from farm import scheduler
from farm.records import Message
from farm.scheduling.dispatch import Sender


class HaltingSender(Sender):
    """Sends as the farm's does, and halts once."""

    def send(self, messages: Sequence[Message]) -> list[int]:
        """As :meth:`farm.scheduling.dispatch.Sender.send`."""
        self._halt(messages, when="before")
        sent = super().send(messages)
        self._halt(messages, when="after")
        return sent

    @staticmethod
    def _halt(messages: Sequence[Message], *, when: str) -> None:
        flag = Path(sys.argv[2])
        if when == sys.argv[1] and not flag.exists():
            flag.write_text(str(sorted(message.job_id for message in messages)))
            os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    scheduler.Sender = HaltingSender
    sys.exit(scheduler.main())
