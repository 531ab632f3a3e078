"""Translations of operators that neither torch nor transformers has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from onnxscript import opset18 as op

# M. Giles, "Approximating the erfinv function", GPU Computing Gems, Jade Edition, 2011: polynomials in
# w = -log(1 - x^2), for the middle in w - 2.5 and for the tails in sqrt(w) - 3, highest power first.
_MIDDLE = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
    *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
)
_TAIL = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
    *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
)
_BORDER = 5.0


def erfinv(x: Any) -> Any:
    """The inverse of the error function, in float32."""
    w = op.Neg(op.Log(op.Mul(op.Sub(_number(1.0), x), op.Add(_number(1.0), x))))
    middle = _polynomial(op.Sub(w, _number(2.5)), _MIDDLE)
    tail = _polynomial(op.Sub(op.Sqrt(op.Max(w, _number(0.0))), _number(3.0)), _TAIL)
    found = op.Mul(op.Where(op.Less(w, _number(_BORDER)), middle, tail), x)
    # A step of Newton's takes what the polynomials leave.
    slope = op.Mul(op.Exp(op.Neg(op.Mul(found, found))), _number(2 / math.sqrt(math.pi)))
    return op.Sub(found, op.Div(op.Sub(op.Erf(found), x), slope))


def _polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    value = _number(coefficients[0])
    for coefficient in coefficients[1:]:
        value = op.Add(op.Mul(value, x), _number(coefficient))
    return value


def _number(value: float) -> Any:
    return op.Constant(value_float=value)


TABLE: Mapping[Any, Callable[..., Any]] = MappingProxyType({torch.ops.aten.erfinv.default: erfinv})
