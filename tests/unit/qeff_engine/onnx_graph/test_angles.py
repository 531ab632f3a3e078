"""Which sines and cosines are of positions, whose angles fp16 is too coarse for."""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir
import pytest

from qeff_engine.onnx_graph import angles

_HEAD = '<ir_version: 10, opset_import: ["": 18, "f": 1]>\n'
_ROTARY = """
    shifted = Add (positions, one)
    row = Unsqueeze (shifted, axes)
    wide = Cast <to: int = 1> (row)
    angle = Mul (wide, frequencies)
    both = Concat <axis: int = -1> (angle, angle)
    cosine = Cos (both)
    y = Mul (cosine, scale)
"""
_CASES = {
    "a rotary embedding": (_ROTARY, ("cosine", "both", "angle", "wide")),
    "a range": ("angle = Mul (x_range, frequencies)\n y = Sin (angle)", ()),
    "an activation": ("y = Sin (x)", ()),
    "an activation cast": ("w = Cast <to: int = 1> (x)\n a = Mul (w, frequencies)\n y = Cos (a)", ()),
    "rows of a table": ("rows = Gather (table, positions)\n y = Sin (rows)", ()),
    "what a function makes": ("a = f.F (positions)\n y = Sin (a)", ()),
    "no angles": ("w = Cast <to: int = 1> (positions)\n y = Mul (w, scale)", ()),
}


@pytest.mark.parametrize("case", _CASES)
def test_only_angles_of_positions_are_named(case):
    body, expected = _CASES[case]
    text = f"""{_HEAD} g (int64[b, s] positions, float[b, s, 1] x, float[b, s, 1] x_range) => (float[b, s, 4] y)
    <int64 one = {{1}}, int64[1] axes = {{2}}, float[2] frequencies = {{1, 0.1}}, float scale = {{2}},
     float[100, 64] table = {{{", ".join(["0"] * 6400)}}}> {{ {body} }}"""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    assert angles.angle_values(model.graph) == expected
