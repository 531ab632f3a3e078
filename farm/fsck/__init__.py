"""Whether rows agree with bytes and with each other, and putting right what does not.

Every check looks at one state of the database. A repair looks again in its own transaction, so a farm may go on working
meanwhile. What only time or a person can put right is told and left alone.
"""

from farm.fsck._findings import Finding, State
from farm.fsck._run import check

__all__ = ["Finding", "State", "check"]
