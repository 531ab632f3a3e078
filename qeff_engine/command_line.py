"""Options of ``python -m qeff_engine``, made from the specs: a field of a spec is an option, and there are no others.

Standard library only: ``--help`` must not wait for torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import Any

import qeff_engine
from qeff_engine import spec, stage
from qeff_engine.compiler_flags import asking
from qeff_engine.compiler_flags.table import FLAGS, OFFERED
from qeff_engine.errors import InvalidInput

EPILOG = """\
Events are printed on stdout, one JSON object per line. Exit code: 0 done, 1 failed, 2 wrong usage, 128 + n ended by
signal n. Nothing is left in --out unless the stage was done.
"""

_ABOUT = {
    spec.Stage.RESOLVE: "make a snapshot of a model: config, tokenizer and safetensors",
    spec.Stage.QUANTIZE: "quantize the weights of a snapshot",
    spec.Stage.EXPORT: "export a snapshot to ONNX",
    spec.Stage.COMPILE: "compile an exported model to a program for the card",
    spec.Stage.RUN: "run a program on a device and measure it",
}
_COMPUTED = {
    spec.Stage.RESOLVE: ("kind", "fingerprint"),  # read off the source
    spec.Stage.COMPILE: ("compiler_options", "unlisted_flags"),  # read off options of their own
}
# Compiler options with an option of their own, since everybody tunes them; the others go through --compiler-option.
_OWN_OPTIONS = ("mos", "ols")
_CODE_DIGEST = "code_digest"
_NAME_OF_TYPE = {int: "N", str: "TEXT"}


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    result = argparse.ArgumentParser(
        prog="python -m qeff_engine",
        description="Single stages of the model pipeline for Qualcomm Cloud AI 100.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    result.add_argument("--version", action="version", version=qeff_engine.__version__)
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in spec.Stage:
        about = _ABOUT[name]
        command = commands.add_parser(name, help=about, description=about, epilog=EPILOG, allow_abbrev=False)
        _add_stage_options(command, name=name)
    about = "say what of the SDK, the devices and the libraries is here"
    doctor = commands.add_parser("doctor", help=about, description=about, allow_abbrev=False)
    doctor.add_argument("--sdk-root", type=Path, metavar="DIR", help="the Cloud AI SDK; default: QAIC_SDK_ROOT")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    return result


def stage_spec(arguments: argparse.Namespace) -> spec.StageSpec:
    """The spec that the options ask for.

    Raises:
        InvalidInput: a value is outside its range.
    """
    kind = spec.SPECS[spec.Stage(arguments.command)]
    given = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(kind)
        if getattr(arguments, field.name, None) is not None
    }
    if kind is spec.ResolveSpec:
        from qeff_engine import checkpoint

        resolve_spec: spec.StageSpec = checkpoint.resolve_spec(
            given["source"], revision=given.get("revision"), trust_remote_code=given.get("trust_remote_code")
        )
        return resolve_spec
    if kind is spec.CompileSpec:
        given |= {"compiler_options": _compiler_options(arguments), "unlisted_flags": tuple(arguments.unlisted_flags)}
    return kind.from_json(given)


def _compiler_options(arguments: argparse.Namespace) -> dict[str, object]:
    """Compiler options by name; a word without a value is a flag that is there.

    Raises:
        InvalidInput: one is given twice, or its file cannot be read.
    """
    given: dict[str, object] = {name: value for name in _OWN_OPTIONS if (value := getattr(arguments, name)) is not None}
    for word in arguments.compiler_options:
        name, equals, value = word.partition("=")
        name = asking.name_of(name)
        if name in given:
            raise InvalidInput(f"The compiler option {name} is given twice, expected each once.")
        given[name] = value if equals else True
    return asking.with_files(given)


def code_consent(arguments: argparse.Namespace) -> str:
    """The digest of code that may run of the stage's snapshot; empty for none, and for a stage that runs none.

    Raises:
        InvalidInput: it is no digest.
    """
    consent = getattr(arguments, _CODE_DIGEST, None) or ""
    if consent and not spec.CODE_DIGEST.fullmatch(consent):
        raise InvalidInput(
            f"--trust-remote-code is '{consent}', expected sha256:DIGEST of the snapshot's code.",
            advice="The resolve stage said it, as remote_code.",
        )
    return consent


def inputs(arguments: argparse.Namespace) -> dict[str, Path]:
    """The input directories by name.

    Raises:
        InvalidInput: one of them does not exist.
    """
    name = spec.Stage(arguments.command)
    found = {}
    for key in (*stage.REQUIRED_INPUTS[name], *stage.OPTIONAL_INPUTS[name]):
        directory = getattr(arguments, f"input_{key}")
        if directory is None:
            continue
        if not directory.is_dir():
            raise InvalidInput(f"--{key} is {directory}, expected a directory that exists.")
        found[key] = directory.absolute()
    return found


def _add_stage_options(command: argparse.ArgumentParser, *, name: spec.Stage) -> None:
    about = _field_texts(spec.SPECS[name])
    hints = typing.get_type_hints(spec.SPECS[name])
    for field in dataclasses.fields(spec.SPECS[name]):
        if field.name not in _COMPUTED.get(name, ()):
            command.add_argument(
                f"--{field.name.replace('_', '-')}",
                dest=field.name,
                help=about.get(field.name, "").replace("%", "%%") + _default_text(field),
                **_argument(hints[field.name], required=field.default is dataclasses.MISSING),
            )
    if name is spec.Stage.COMPILE:
        _add_compiler_options(command)
    files = command.add_argument_group("directories")
    for required, keys in ((True, stage.REQUIRED_INPUTS[name]), (False, stage.OPTIONAL_INPUTS[name])):
        for key in keys:
            files.add_argument(
                f"--{key}", dest=f"input_{key}", type=Path, metavar="DIR", required=required, help=f"the {key} to read"
            )
    if stage.SNAPSHOT in stage.REQUIRED_INPUTS[name]:
        command.add_argument(
            "--trust-remote-code",
            dest=_CODE_DIGEST,
            metavar="DIGEST",
            help="run the code that the snapshot has, if this is its digest (default: no code is run)",
        )
    files.add_argument("--out", type=Path, metavar="DIR", required=True, help="new directory for what the stage makes")
    if name in (spec.Stage.COMPILE, spec.Stage.RUN):
        files.add_argument("--sdk-root", type=Path, metavar="DIR", help="the Cloud AI SDK; default: QAIC_SDK_ROOT")
    if name is spec.Stage.RUN:
        command.add_argument(
            "--device", type=int, metavar="QID", action="append", help="device to run on; default: one that is free"
        )
    command.add_argument("-v", "--verbose", action="store_true", help="print the traceback of a failure")


def _add_compiler_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("flags of the compiler")
    for name in _OWN_OPTIONS:
        kind = FLAGS[name].kind
        group.add_argument(f"--{name}", metavar="N", help=f"{FLAGS[name].about} ({kind.expected})")
    group.add_argument(
        "--compiler-option",
        dest="compiler_options",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help=f"another one, checked; may be repeated. Known: {', '.join(OFFERED)}",
    )
    group.add_argument(
        asking.ESCAPE,
        dest="unlisted_flags",
        action="append",
        default=[],
        metavar="-NAME[=VALUE]",
        help="one that is not known, as it is; nothing checks it; may be repeated",
    )
    command.add_argument(
        "--compiler-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="kill the compiler with all of its processes after so long (default: never)",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds above 0")
    return seconds


def _argument(hint: Any, *, required: bool) -> dict[str, Any]:
    """How argparse reads a value of a field's type: int, str, bool, one of them or None, or a tuple of str."""
    if isinstance(hint, types.UnionType):
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction, "default": None}
    if typing.get_origin(hint) is tuple:
        return {"nargs": "+", "metavar": "TEXT", "required": required}
    return {"type": hint, "metavar": _NAME_OF_TYPE[hint], "required": required}


def _default_text(field: dataclasses.Field[Any]) -> str:
    if field.default in (dataclasses.MISSING, None, "", ()):
        return ""
    default = field.default
    if isinstance(default, bool):
        default = "yes" if default else "no"
    return f" (default: {' '.join(default) if isinstance(default, tuple) else default})"


def _field_texts(kind: type[spec.StageSpec]) -> dict[str, str]:
    """What the docstring of a spec says about each field, on one line."""
    section = (kind.__doc__ or "").partition("Attributes:")[2]
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", section, flags=re.MULTILINE)
    return {name: re.sub(r":\w+:`[~.]?([^`]*)`|``", r"\1", " ".join(text.split())) for name, text in entries}
