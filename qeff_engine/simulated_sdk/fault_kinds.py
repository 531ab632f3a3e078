"""Which faults a simulated SDK can show, and what each can be told. Standard library only.

Texts and codes are those that the vendor's tools, runtime and firmware have been seen to print; where none is known,
the fault takes one from the request.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

COMPILERS = ("qaic-compile", "qaic-exec")
UTIL = "qaic-util"
RUNTIME = "qaicrt"  # whoever runs programs through it, qaic-runner too
TOOLS = (*COMPILERS, UTIL, RUNTIME)

_Check = Callable[[object], bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """What a kind of fault can be told.

    Attributes:
        default: what holds when nothing is said.
        expected: the values that are taken, for people.
        accepts: whether a value is one of them.
        about: what it means.
    """

    default: object
    expected: str
    accepts: _Check
    about: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of fault.

    Attributes:
        about: what happens.
        tools: where it shows.
        parameters: what else it can be told, by name.
    """

    about: str
    tools: tuple[str, ...]
    parameters: Mapping[str, Parameter] = dataclasses.field(default_factory=dict)


def number(*, default: float, at_least: float, about: str, at_most: float = 86_400.0) -> Parameter:
    """A number in a range."""

    def accepts(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and at_least <= value <= at_most

    return Parameter(
        default=default, expected=f"a number from {at_least:g} to {at_most:g}", accepts=accepts, about=about
    )


def flag(*, about: str) -> Parameter:
    """Yes or no, no by default."""
    return Parameter(
        default=False, expected="true or false", accepts=lambda value: isinstance(value, bool), about=about
    )


def one_of(names: Mapping[str, str], *, about: str) -> Parameter:
    """A name of a table; the first is the default."""
    return Parameter(
        default=next(iter(names)),
        expected=f"one of {', '.join(names)}",
        accepts=lambda value: isinstance(value, str) and value in names,
        about=about,
    )


def text(*, default: str, about: str) -> Parameter:
    """Any words."""
    return Parameter(default=default, expected="text", accepts=lambda value: isinstance(value, str), about=about)


# What compilers have printed (issues 2 and 1129 of quic/cloud-ai-sdk and quic/efficient-transformers and messages of
# commits there); exit code 1, or 255 where the JSON library throws.
COMPILER_ERRORS: Mapping[str, str] = {
    "shape": "QAIC_ERROR:\nError message:  [Operator-'/model/layers.16/self_attn/Reshape'] : Reshape: input shape "
    "(4, 4, 4096) and output shape (4, 1, 32, 128) have different number of elements (65536 vs 16384)\n"
    "Unable to AddNodesToGraphFromModel",
    "lengths": "QAIC_ERROR:\nError message:  [Operator-'/model/layers.0/self_attn/ScatterND', opset_version-13, "
    "ir_version-7] : Indices and updates must have same lengths!\nUnable to AddNodesToGraphFromModel",
    "constant": "QAIC_ERROR:\nError message:  [Operator-'Range_343', opset_version-13, ir_version-7] : Range: 'limit' "
    "input must be a constant tensor\nUnable to AddNodesToGraphFromModel",
    "option": "Invalid option -retained-state. Use -h, -help, or --help for list of options.",
    "json": "[json.exception.type_error.302] type must be string, but is object",
    "write": "QAIC_ERROR: Unable to create qpc/ directory. Err=No such file or directory",
    "memory": "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc",
}
BAD_JSON_ERROR = "json"

# Answers of the firmware to an activation, by what is short or wrong (QNncProtocol.h of the open runtime).
ACTIVATION_CODES: Mapping[str, str] = {
    "nsp": "Failed to allocate NSP resources",
    "memory": "Memory resource exhausted",
    "vc": "Failed to allocate virtual channel",
    "mcid": "Failed to allocate multicast IDs",
    "semaphore": "Failed to allocate GSM semaphore",
    "reservation": "Failed to allocate, reservation ids exhausted",
    "nsp-timeout": "NSP response timeout/error",
    "state": "Timed out waiting for a state change",
    "ssr": "NSP under SSR",
    "version": "Version mismatch, error processing the ELF metadata",
}

_SECONDS = "seconds of real time that the call waits before it ends"

KINDS: Mapping[str, Kind] = {
    "compiler-error": Kind(
        about="the compiler refuses the model, with a text of the real one and its exit code",
        tools=COMPILERS,
        parameters={
            "error": one_of(COMPILER_ERRORS, about="which text"),
            "text": text(default="", about="these words on stderr in place of it"),
            "exit_code": number(default=1, at_least=1, at_most=255, about="exit code of words of your own"),
        },
    ),
    "compiler-crash": Kind(about="the compiler dies of SIGSEGV", tools=COMPILERS),
    "compiler-hang": Kind(
        about="the compiler goes on for ever",
        tools=COMPILERS,
        parameters={"ignore_sigterm": flag(about="only SIGKILL ends it")},
    ),
    "compiler-oom": Kind(
        about="the compiler is killed by SIGKILL without a word, as the kernel does when memory is short",
        tools=COMPILERS,
    ),
    "compiler-slow": Kind(
        about="the compiler takes longer",
        tools=COMPILERS,
        parameters={"seconds": number(default=10, at_least=0, about="seconds of real time that are added")},
    ),
    "compiler-truncated": Kind(
        about="exit code 0, and programqpc.bin ends in the middle",
        tools=COMPILERS,
        parameters={"keep": number(default=0.5, at_least=0, at_most=1, about="share of its bytes that are there")},
    ),
    "compiler-empty": Kind(about="exit code 0, and no programqpc.bin", tools=COMPILERS),
    "compiler-half": Kind(about="exit code 1, and a directory with half a program is left", tools=COMPILERS),
    "device-error": Kind(about="the device has the status Error, and programs on it fail", tools=(UTIL, RUNTIME)),
    "device-permission": Kind(
        about="the device may not be opened: status Error, and activation answers PERM", tools=(UTIL, RUNTIME)
    ),
    "device-missing": Kind(
        about="the device is not there",
        tools=(UTIL, RUNTIME),
        parameters={"renumber": flag(about="the devices behind it move up by one, since numbers follow PCI addresses")},
    ),
    "device-moved": Kind(
        about="the device has another number, and the one that had it gets this one's",
        tools=(UTIL, RUNTIME),
        parameters={"qid": number(default=0, at_least=0, at_most=63, about="its number now")},
    ),
    "device-ssr": Kind(
        about="the cores of a program restart in the middle of a call: its inputs are lost, it has to be activated "
        "anew, and other programs on the device go on",
        tools=(RUNTIME,),
    ),
    "device-timeout": Kind(
        about="a call ends with TIMEDOUT",
        tools=(RUNTIME,),
        parameters={"seconds": number(default=0, at_least=0, about=_SECONDS)},
    ),
    "activation-refused": Kind(
        about="the firmware refuses an activation",
        tools=(RUNTIME,),
        parameters={"code": one_of(ACTIVATION_CODES, about="its answer")},
    ),
    "wrong-numbers": Kind(
        about="outputs have other signs than they should have (whole numbers: another lowest bit)",
        tools=(RUNTIME,),
        parameters={"share": number(default=1, at_least=0, at_most=1, about="share of the values, chosen by the seed")},
    ),
    "device-slow": Kind(
        about="calls take longer by a factor, on the simulated clock",
        tools=(RUNTIME,),
        parameters={"factor": number(default=2, at_least=1, at_most=1000, about="how many times as long")},
    ),
    "device-throttled": Kind(
        about="the device is hot: its cores run at a part of their clock, which qaic-util shows, and calls take longer",
        tools=(UTIL, RUNTIME),
        parameters={
            "clock": number(default=0.5, at_least=0.05, at_most=1, about="part of the clock"),
            "celsius": number(default=95, at_least=0, at_most=150, about="temperature that qaic-util shows"),
        },
    ),
}
