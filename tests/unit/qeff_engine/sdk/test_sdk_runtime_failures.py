import os
import sys

import pytest

from qeff_engine import errors
from qeff_engine.sdk.captured import captured
from qeff_engine.sdk.runtime_failures import failure

OUT_OF_MEMORY = """
ERROR : [12:00:00.000][error][QKmdDevice][activate:#1172] Device 0 activate failed: Memory resource exhausted
ERROR : [12:00:00.000][error][QRuntime][activateNetwork:#333] Dev 0 activate failed status 300
"""


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (300, OUT_OF_MEMORY, errors.DeviceOutOfMemory),
        (300, "Dev 0 activate failed: Failed to allocate NSP resources", errors.DeviceLost),
        (500, "QAIC_ERROR_NSP_ALLOC_FAILED", errors.DeviceLost),
        (300, "Failed to allocate virtual channel", errors.DeviceLost),
        (300, "Failed to allocate multicast IDs", errors.DeviceLost),
        (300, "Failed to allocate GSM semaphore", errors.DeviceLost),
        (300, "NSP under SSR", errors.DeviceLost),
        (1, "Device 0 activate failed: Permission denied", errors.DeviceLost),
        (9, "IOCTL: Connection timed out ERROR", errors.DeviceLost),
        (300, "Version mismatch, error processing the ELF metadata", errors.InvalidInput),
        (300, "NSP response timeout/error", errors.DeviceLost),
        (500, "Version mismatch / error processing the ELF metadata", errors.InvalidInput),
        (RuntimeError("Failed to create program with Qpc Buffer"), "", errors.InvalidInput),
        (3, "", errors.DeviceOutOfMemory),
        (4, "", errors.DeviceLost),
        (300, "", errors.DeviceLost),
        (500, "", errors.Infrastructure),
        (RuntimeError("something else"), "", errors.Infrastructure),
    ],
)
def test_activation_failures_are_classified_by_text_then_status(status, text, kind):
    error = failure("activate the program on device 0", status=status, text=text)
    assert type(error) is kind
    assert "activate the program on device 0" in str(error)


def test_the_runtimes_own_words_are_in_the_message():
    error = failure("activate", status=300, text=OUT_OF_MEMORY)
    assert "Device 0 activate failed: Memory resource exhausted" in str(error)
    assert "mxfp6" in error.advice


def test_a_default_serves_where_nothing_explains_the_failure():
    assert isinstance(failure("run", status=500, default=errors.DeviceLost), errors.DeviceLost)


def test_output_of_native_code_and_of_python_is_captured_and_passed_on(capfd):
    with captured() as said:
        os.write(2, b"native words\n")
        os.write(1, b"more native words\n")
        sys.stderr.write("python words\n")
    assert said.text == "native words\nmore native words\npython words\n"
    sys.stderr.flush()
    out, err = capfd.readouterr()
    assert (out, err) == ("", said.text)


def test_streams_are_restored_after_an_error(capfd):
    with pytest.raises(KeyError), captured():
        raise KeyError
    os.write(1, b"afterwards")
    assert capfd.readouterr().out == "afterwards"
