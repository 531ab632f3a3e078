"""Which tokens of a call are real and which come before which, from their positions alone.

As with attention masks, no length enters a graph this way: the same graph serves prefill and decode.

Shape legend: B batch, S and T tokens of a call.
"""

from __future__ import annotations

import functools

import torch


class TokenOrder:
    """The order of the tokens of a call.

    Attributes:
        slots_BS: positions of the tokens; a negative one is padding. Real ones grow along a row.
    """

    def __init__(self, slots_BS: torch.Tensor) -> None:
        self.slots_BS = slots_BS

    @functools.cached_property
    def is_real_BS(self) -> torch.Tensor:
        """Whether a token is no padding."""
        return self.slots_BS >= 0

    @functools.cached_property
    def num_real_B(self) -> torch.Tensor:
        """How many tokens of a row are real, int64."""
        return self.is_real_BS.long().sum(1)

    @functools.cached_property
    def begins_B(self) -> torch.Tensor:
        """Whether a row begins in this call, that is, has a token at position 0."""
        return (self.slots_BS == 0).long().sum(1) > 0

    @functools.cached_property
    def precedes_BST(self) -> torch.Tensor:
        """Whether token T comes before token S, both real."""
        earlier_BST = self.slots_BS[:, None, :] < self.slots_BS[:, :, None]
        return earlier_BST & self._both_real_BST

    @functools.cached_property
    def is_same_BST(self) -> torch.Tensor:
        """Whether T is S itself, and real."""
        return (self.slots_BS[:, None, :] == self.slots_BS[:, :, None]) & self._both_real_BST

    @functools.cached_property
    def rank_BS(self) -> torch.Tensor:
        """How many real tokens of its row come before a token, float32."""
        return self.precedes_BST.float().sum(2)

    def in_one_block_BST(self, size: int) -> torch.Tensor:
        """Whether S and T are both real and lie in the same block of ``size`` consecutive real tokens of their row."""
        block_BS = torch.floor(self.rank_BS / size)
        return (block_BS[:, :, None] == block_BS[:, None, :]) & self._both_real_BST

    @functools.cached_property
    def _both_real_BST(self) -> torch.Tensor:
        return self.is_real_BS[:, :, None] & self.is_real_BS[:, None, :]
