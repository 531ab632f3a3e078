"""Everything that writes to a farm's database, each in a situation in which it has much to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.proof import node_operations, scheduler_operations, user_operations
from tests.proof.situations import Act
from tests.proof.world import World

OPERATIONS: Mapping[str, Callable[[World], Act]] = {
    **user_operations.OPERATIONS,
    **scheduler_operations.OPERATIONS,
    **node_operations.OPERATIONS,
}
