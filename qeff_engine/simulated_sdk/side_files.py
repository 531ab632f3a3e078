"""The files beside a compiler command line: specializations, custom IO and the split over devices."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qeff_engine.simulated_sdk.options import MAX_CORES
from qeff_engine.simulated_sdk.refusal import input_refusal, json_refusal
from qeff_engine.simulated_sdk.version_cli import at_least

NAMED_FORM_SINCE = (1, 22)
PRECISIONS = ("float32", "float16", "bfloat16", "int8", "mxint8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Specialization:
    """One static shape: a name (empty in the flat form) and the size of every symbol."""

    name: str
    symbols: Mapping[str, int]


def read_specializations(path: Path, *, version: str) -> list[Specialization]:
    """The static shapes of a ``specializations.json``.

    Compilers before 1.22 know the flat form only, in which every value is a text.

    Raises:
        Refusal: not JSON, not one of the forms, no positive integers in it, or one entry twice.
    """
    document = _json(path)
    entries = document.get("specializations") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise json_refusal("out_of_range.403", message="key 'specializations' not found")
    if not entries:
        raise input_refusal(f"{path} has no specializations.")
    found = [_specialization(entry, version=version) for entry in entries]
    for number, item in enumerate(found):
        earlier = [before.symbols for before in found[:number]]
        if item.symbols in earlier:
            # The runtime chooses by shapes, so it could not tell the two apart.
            raise input_refusal(f"Specializations {earlier.index(item.symbols)} and {number} of {path} are the same.")
    return found


def _specialization(entry: Any, *, version: str) -> Specialization:
    name = ""
    if not isinstance(entry, dict):
        raise json_refusal("type_error.302", message=f"type must be object, but is {_json_type(entry)}")
    if at_least(version, wanted=NAMED_FORM_SINCE) and isinstance(entry.get("symbols"), dict):
        name, entry = str(entry.get("name", "")), entry["symbols"]
    for value in entry.values():
        if not isinstance(value, str):
            raise json_refusal("type_error.302", message=f"type must be string, but is {_json_type(value)}")
    sizes: dict[str, int] = {}
    for symbol, value in entry.items():
        if not value.isascii() or not value.isdigit() or int(value) < 1:
            raise input_refusal(f"Invalid value '{value}' for symbol '{symbol}': expected a positive integer.")
        sizes[symbol] = int(value)
    return Specialization(name=name, symbols=sizes)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise input_refusal(f"Unable to open {path}. Err={error.strerror}") from error
    except json.JSONDecodeError as error:
        where = f"parse error at line {error.lineno}, column {error.colno}: syntax error while parsing value"
        raise json_refusal("parse_error.101", message=where) from error
    except UnicodeDecodeError as error:
        raise json_refusal("parse_error.101", message="parse error: invalid UTF-8 byte") from error


def _json_type(value: Any) -> str:
    names = {bool: "boolean", int: "number", float: "number", list: "array", dict: "object", type(None): "null"}
    return names.get(type(value), "string")


def read_custom_io(path: Path) -> dict[str, str]:
    """Precision by tensor name of a ``custom_io.yaml``: pairs of lines, ``- IOName: X`` and ``Precision: Y``.

    Raises:
        Refusal: another line, a name without precision or an unknown precision.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise input_refusal(f"Unable to open {path}. Err={getattr(error, 'strerror', error)}") from error
    precisions: dict[str, str] = {}
    name: str | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        is_name = re.fullmatch(r"\s*-\s+IOName:\s*(\S+)\s*", line)
        is_precision = re.fullmatch(r"\s+Precision:\s*(\S+)\s*", line)
        if is_name and name is None:
            name = is_name[1].strip("\"'")
        elif is_precision and name is not None:
            if is_precision[1] not in PRECISIONS:
                raise input_refusal(
                    f"{path}:{number}: invalid precision '{is_precision[1]}' of '{name}': expected one of "
                    f"{', '.join(PRECISIONS)}."
                )
            precisions[name], name = is_precision[1], None
        else:
            raise input_refusal(f"{path}:{number}: cannot parse custom IO list: '{line.strip()}'.")
    if name is not None:
        raise input_refusal(f"{path}: '{name}' has no precision.")
    return precisions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partition:
    """A part of a program and the devices that share it.

    Attributes:
        name: for messages.
        devices: their places among all devices of the file in the order of their numbers, from 0 on.
        nodes: names of its nodes; empty where it has all.
    """

    name: str
    devices: tuple[int, ...]
    nodes: tuple[str, ...]


def read_partitions(path: Path, *, num_cores: int) -> tuple[Partition, ...]:
    """The parts of a partition file: one over whose devices every tensor is sliced, or the several of a pipeline.

    Raises:
        Refusal: not JSON, a part of a pipeline without nodes, a device that is named twice, or other core counts than
            the command line's.
    """
    document = _json(path)
    try:
        entries = list(document["partitions"])
        devices = [[(int(item["deviceId"]), int(item["numCores"])) for item in part["devices"]] for part in entries]
        names = [str(part.get("name", f"partition {number}")) for number, part in enumerate(entries)]
        nodes = [_names(part.get("nodeList", [])) for part in entries]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise input_refusal(f"{path} is not a partition configuration: {error!r}.") from error
    numbers = sorted(device for part in devices for device, _ in part)
    if len(set(numbers)) != len(numbers) or not 1 <= len(numbers) <= 16 or not all(devices):
        raise input_refusal(f"{path} names {len(numbers)} devices, expected 1 to 16 different ones, each part some.")
    if any(cores != num_cores or not 1 <= cores <= MAX_CORES for part in devices for _, cores in part):
        raise input_refusal(f"{path} has other core counts than -aic-num-cores={num_cores}.")
    for name, listed in zip(names, nodes, strict=True):
        if len(entries) > 1 and not listed:
            raise input_refusal(f"{path}: '{name}' has no nodeList, which every part of a pipeline needs.")
    return tuple(
        Partition(name=name, devices=tuple(numbers.index(device) for device, _ in part), nodes=listed)
        for name, part, listed in zip(names, devices, nodes, strict=True)
    )


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("nodeList is no list of names")
    return tuple(value)
