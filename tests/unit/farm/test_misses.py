"""In what two keys differ."""

from __future__ import annotations

from farm.views.misses import differences


def test_differences_are_told_by_their_place_in_the_key() -> None:
    before = {"spec": {"num_cores": 8, "mos": None}, "inputs": {"onnx": "a" * 64}, "toolchain": {"torch": "2.12"}}
    after = {"spec": {"num_cores": 14}, "inputs": {"onnx": "b" * 64}, "toolchain": {"torch": "2.12", "sdk": "1"}}
    assert [str(one) for one in differences(before, after)] == [
        f"inputs.onnx changed ({'a' * 12} -> {'b' * 12})",
        "spec.num_cores 8 -> 14",
        "toolchain.sdk absent -> 1",
    ]


def test_equal_keys_have_no_differences() -> None:
    assert differences({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}) == ()
