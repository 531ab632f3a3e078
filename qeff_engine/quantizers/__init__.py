"""Float weights to packed weights: one module per method, its mathematics apart.

===================  ===========================================================================
``base``             the contract of a quantizer and the values it works on
``rounding``         which integers a group of weights becomes: grids and rounding to the nearest
``activations``      what is remembered of a linear's input, and the output error it gives
``rtn``              round to nearest
``gptq``             error-compensated rounding; mathematics in ``gptq_math``
``awq``              scaling of salient channels, clipping; mathematics in ``awq_math``
``folding``          where a scale of input channels can go: found by experiment, not by names
``calibration``      text to token rows
``layerwise``        one decoder layer in memory at a time
``packing``          integers to and from the standard layouts, and ``MatMulNBits``'s
``checkpoint_files`` the quantized checkpoint, written as it comes
``reading``          quantized checkpoints as ``MatMulNBits`` tensors and modules
===================  ===========================================================================
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from qeff_engine.errors import InvalidInput, near_miss

if TYPE_CHECKING:
    from qeff_engine.quantizers.base import Quantizer

# Modules are imported when a method is used; each has a `QUANTIZER`.
QUANTIZERS: Mapping[str, str] = MappingProxyType(
    {
        "rtn": "qeff_engine.quantizers.rtn",
        "gptq": "qeff_engine.quantizers.gptq",
        "awq": "qeff_engine.quantizers.awq",
    }
)


def load(method: str) -> Quantizer:
    """The quantizer of a method.

    Raises:
        InvalidInput: there is none of that name.
    """
    if method not in QUANTIZERS:
        raise InvalidInput(f"There is no quantizer '{method}'.", advice=near_miss(method, tuple(QUANTIZERS)))
    quantizer: Quantizer = importlib.import_module(QUANTIZERS[method]).QUANTIZER
    return quantizer
