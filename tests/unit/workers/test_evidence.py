"""What logs tell of failures; the samples are what the programs really print."""

from __future__ import annotations

import pytest

from qeff_engine.errors import FailureClass
from workers import evidence

BAD_SHAPE = """\
Reading ONNX Model from /w/model.onnx
[WARNING] 3 values underflow in FP16: error below 1e-7
Compile started ...............
QAIC_ERROR:
Error message:  [Operator-'/layers.1/Reshape'] : Reshape: input shape (4, 4) and output shape (4, 1) differ
Unable to AddNodesToGraphFromModel
The compiler ended with exit code 1: [Operator-'/layers.1/Reshape'] : Reshape
"""
TORCH = """\
Traceback (most recent call last):
  File "x.py", line 3, in f
    torch.empty(10**15)
RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to \
allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)
"""
CHAINED = """\
Traceback (most recent call last):
  File "a.py", line 1, in <module>
KeyError: 'weight'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 2, in <module>
    x = \x1b[31m1 / 0\x1b[0m
        ~~^~~
\x1b[1mZeroDivisionError\x1b[0m: division by zero
"""
CRASH = """\
begins
Fatal Python error: Segmentation fault

Current thread 0x1 (most recent call first):
  File "x.py", line 3 in f
"""


@pytest.mark.parametrize(
    ("failure_class", "log", "line"),
    [
        (FailureClass.COMPILER_ERROR, BAD_SHAPE, "Error message:  [Operator-'/layers.1/Reshape'] : Reshape: input"),
        (FailureClass.UNSUPPORTED, "a\nInvalid option -x. Use -h, -help, or --help for list of options.\nb", "Invalid"),
        (
            FailureClass.COMPILER_ERROR,
            "x\n[json.exception.type_error.302] type must be string, but is object\n",
            "[json.exception.type_error.302]",
        ),
        (
            FailureClass.COMPILER_CRASH,
            "go\nterminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\nend",
            "what():",
        ),
        (FailureClass.OUT_OF_MEMORY_HOST, TORCH, "RuntimeError: [enforce fail"),
        (FailureClass.OUT_OF_MEMORY_DEVICE, "a\nMemory resource exhausted (-4)\nb", "Memory resource exhausted"),
        (FailureClass.DEVICE_LOST, "Failed to allocate NSP resources\nlater", "Failed to allocate NSP resources"),
        (FailureClass.INFRASTRUCTURE, "a\nOSError: [Errno 28] No space left on device: 'x'\nb", "OSError: [Errno 28]"),
        (FailureClass.INFRASTRUCTURE, "QAIC_ERROR: Unable to create /x/qpc/ directory. Err=No such file", "QAIC_ERROR"),
        (FailureClass.BUG, CHAINED, "ZeroDivisionError: division by zero"),
        (FailureClass.BUG, CRASH, "Fatal Python error: Segmentation fault"),
        (FailureClass.BUG, "nothing of interest", ""),
        (FailureClass.TIMEOUT, "step 1\nstep 2\n", ""),
        (FailureClass.BUG, "", ""),
    ],
)
def test_the_line_that_matters_is_found(failure_class: FailureClass, log: str, line: str) -> None:
    found = evidence.decisive_line(failure_class, log)
    assert found.startswith(line)
    assert bool(found) == bool(line)


@pytest.mark.parametrize(
    ("text", "failure_class"),
    [
        (TORCH, FailureClass.OUT_OF_MEMORY_HOST),
        ("MemoryError", FailureClass.OUT_OF_MEMORY_HOST),
        ("numpy: Unable to allocate 7.28 TiB for an array with shape (1,)", FailureClass.OUT_OF_MEMORY_HOST),
        ("terminate called after throwing an instance of 'std::bad_alloc'", FailureClass.OUT_OF_MEMORY_HOST),
        ("OSError: [Errno 122] Disk quota exceeded", FailureClass.INFRASTRUCTURE),
        ("requests.exceptions.ConnectionError: Max retries exceeded with url", FailureClass.INFRASTRUCTURE),
        ("OSError: [Errno 24] Too many open files: '/x'", FailureClass.INFRASTRUCTURE),
        (CHAINED, None),
        ("", None),
        ("No space left on device\n" + "fine\n" * 100, None),  # long ago, and it went on
    ],
)
def test_an_end_that_named_no_class_is_judged_by_the_end_of_its_log(
    text: str, failure_class: FailureClass | None
) -> None:
    assert evidence.class_of(text) is failure_class


def test_the_last_words_are_without_colours_and_empty_lines() -> None:
    assert evidence.last_line("one\n\x1b[32mtwo\x1b[0m  \n\n") == "two"
    assert evidence.last_line("") == ""
