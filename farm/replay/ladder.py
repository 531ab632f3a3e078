"""The steps from first come, first served to the farm's policy: one switch more on each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from farm.placement import Policy

_IN_ORDER = Policy(class_s={}, priority_s=0.0, share_s=0.0, chain=0.0, burst_s=0.0)

LADDER: Mapping[str, Policy] = {
    "first come": dataclasses.replace(_IN_ORDER, best_fit=False, backfill=False, prediction=False),
    "+ best fit": dataclasses.replace(_IN_ORDER, backfill=False, prediction=False),
    "+ backfill": dataclasses.replace(_IN_ORDER, prediction=False),
    "+ prediction": _IN_ORDER,
    "full": Policy(),
}
