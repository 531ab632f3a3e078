"""What can go wrong in the farm, and the exit code that tells it.

::

    FarmError                     1   something failed
    ├── Usage                     2   the request is wrong: value, option, model path
    ├── NotFound                  3   no such job, submission, device or artifact
    ├── Refused                   4   the state of things does not allow it
    │   ├── FarmNotUp             4   no farm in this home
    │   ├── DatabaseTooNew        4   the database was written by a newer program
    │   └── StaleTransition       4   somebody else moved the job first; the caller has lost and stops
    │       └── TermOver          4   another scheduler leads; this one stops leading
    ├── DatabaseBusy              5   another process has held the database for too long; nothing was written
    ├── NoCapacity                1   cores or slots were taken meanwhile; the job goes back to the queue
    └── StorageFault              1   disk full, read-only
        └── DamagedArtifact       1   an artifact's bytes are gone or not what was published; doing the work again helps

The exit codes are documented in ``farm --help``; ``130`` is an interrupt.
"""

from __future__ import annotations


class FarmError(Exception):
    """Base of all errors that the farm raises on purpose: what, which value, what was expected, what to do."""

    exit_code = 1


class Usage(FarmError):
    """The request is wrong."""

    exit_code = 2


class NotFound(FarmError):
    """There is no such thing."""

    exit_code = 3


class Refused(FarmError):
    """The state of things does not allow it."""

    exit_code = 4


class FarmNotUp(Refused):
    """There is no farm in this home, or it does not answer."""


class DatabaseTooNew(Refused):
    """The database was written by a newer program than this one."""


class StaleTransition(Refused):
    """The job is no longer in the state, or at the attempt, that the caller believes."""


class TermOver(StaleTransition):
    """Another scheduler leads: nothing of the caller's term may be written any more."""


class DatabaseBusy(FarmError):
    """Another process holds the database. Nothing was written; trying again is safe."""

    exit_code = 5


class NoCapacity(FarmError):
    """Cores or slots were taken meanwhile."""


class StorageFault(FarmError):
    """The disk is full or read-only, or the store does not answer."""


class DamagedArtifact(StorageFault):
    """An artifact's bytes are gone, or are not what was published: it has to be made again.

    Attributes:
        digest: of the artifact. What was left of it is out of the way, so that it can be published anew.
    """

    def __init__(self, message: str, *, digest: str) -> None:
        super().__init__(message)
        self.digest = digest
