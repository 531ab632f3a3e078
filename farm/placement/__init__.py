"""Which ready job goes where, and when the others will. Pure: the same arguments give the same answer.

:func:`place` is what the scheduler calls in every round and what the replay (:mod:`farm.replay`) calls with recorded
and generated work. :mod:`farm.placement.estimates` predicts durations from history.
"""

from __future__ import annotations

from farm.placement.deciding import Placement, place
from farm.placement.policy import Policy

__all__ = ["Placement", "Policy", "place"]
