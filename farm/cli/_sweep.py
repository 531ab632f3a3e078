"""The grammar of a sweep on the command line: comma lists, prompts, models."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from farm import needs, plan
from farm.errors import Usage
from qeff_engine import spec

_T = TypeVar("_T")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the axes of a sweep. Lists are comma lists; a repeated option adds to its list."""
    axes = parser.add_argument_group("axes of the sweep", "every combination is a point; lists as in --cores 8,14,16")
    axes.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="MODEL",
        help="directory of a checkpoint, .gguf file, or hub id[@revision]; may be repeated",
    )

    def axis(option: str, parse: Callable[[str], Any], text: str) -> None:
        axes.add_argument(option, action="extend", type=_list_of(parse), metavar="LIST", help=text)

    axis("--cores", _number, "cores (NSPs) of a device (16)")
    axis("--batch", _number, "sequences decoded together (1)")
    axis("--ctx-len", _number, f"context length, or an encoder's input length ({plan.DEFAULT_CTX_LEN})")
    axis("--prefill-len", _number, f"tokens of a prefill call ({plan.DEFAULT_PREFILL_LEN}, at most the context)")
    axis("--precision", str, f"weights: {', '.join(spec.PRECISIONS)} (fp16)")
    axis("--kv", str, f"KV cache: {', '.join(spec.KV_PRECISIONS)} (fp16)")
    axis("--quantize", spec.QuantizeSpec.parse, "checkpoint: none, METHOD[:BITS[:GROUP]] such as gptq:4:64 (none)")
    places = parser.add_argument_group("where it is done", "what no place of the farm can be is refused at once")
    places.add_argument("--devices", type=_number, default=1, metavar="N", help="devices of one host per program (1)")
    places.add_argument("--exclusive", action="store_true", help="each run has its devices alone")
    places.add_argument("--sku", default="", metavar="SKU", help="kind of device of the runs, such as ultra")
    places.add_argument(
        "--device-label",
        action="append",
        default=[],
        metavar="LABEL",
        help="that the runs' devices, or their host, must have (`farm label`); may be repeated",
    )
    places.add_argument("--host", default="", metavar="HOST", help="that does all of it")
    places.add_argument(
        "--sdk", default="", metavar="VERSION", help="SDK that compiles and runs, or how its version begins"
    )
    runs = parser.add_argument_group("what each point runs")
    runs.add_argument(
        "--generation-len", type=_number, metavar="N", help="tokens to generate at most (what the context has room for)"
    )
    runs.add_argument("--task", default="", metavar="TASK", help=f"{', '.join(spec.TASKS)} (by the model's config)")
    runs.add_argument("--prompt", action="append", metavar="TEXT", help="a text to continue; may be repeated")
    runs.add_argument(
        "--prompts-file",
        metavar="FILE",
        help="one prompt a line; of a .jsonl file, one JSON string a line",
    )


def make(options: argparse.Namespace) -> plan.Sweep:
    """The sweep that the options ask for, every model looked at.

    Raises:
        Usage, InvalidInput, Unsupported: an axis, a prompt or a model is wrong.
    """
    axes: dict[str, Any] = {}
    for name in ("cores", "batch", "ctx_len", "prefill_len", "precision", "kv", "quantize"):
        values = getattr(options, name)
        if values is not None:
            axes[name] = tuple(values)
    return plan.Sweep(
        models=_models(options.model),
        generation_len=options.generation_len,
        prompts=_prompts(options.prompt, options.prompts_file),
        task=options.task,
        num_devices=options.devices,
        needs=needs.Needs(
            sku=options.sku,
            labels=tuple(sorted(set(options.device_label))),
            host=options.host,
            sdk=options.sdk,
            exclusive=options.exclusive,
        ),
        **axes,
    )


def _list_of(parse: Callable[[str], _T]) -> Callable[[str], list[_T]]:
    def parse_list(text: str) -> list[_T]:
        words = [word.strip() for word in text.split(",")]
        if not all(words):
            raise argparse.ArgumentTypeError(f"'{text}' has an empty element, expected values between commas")
        return [parse(word) for word in words]

    return parse_list


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def _prompts(given: Sequence[str] | None, path: str | None) -> tuple[str, ...]:
    prompts = list(given or ())
    if path is not None:
        prompts += _read_prompts(Path(path))
    elif given is None:
        prompts = [spec.DEFAULT_PROMPT]
    return tuple(prompts)


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise Usage(f"--prompts-file {path} cannot be read: {why}. Expected a text file.") from error
    if path.suffix == ".jsonl":
        lines = [_json_string(line, where=f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    if not lines:
        raise Usage(f"--prompts-file {path} has no prompt, expected at least one line.")
    return lines


def _json_string(line: str, *, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise Usage(f"{where} is not JSON: {error}. Expected a string.") from error
    if not isinstance(value, str):
        raise Usage(f"{where} is {line[:40]}, expected a JSON string.")
    return value


def _models(sources: Sequence[str]) -> tuple[plan.SweepModel, ...]:
    names = _names(sources)
    return tuple(_model(source, name=name) for source, name in zip(sources, names, strict=True))


def _model(source: str, *, name: str) -> plan.SweepModel:
    """A model whose files were looked at as far as that is cheap: no weight is read, no hub is asked."""
    from qeff_engine import checkpoint

    place, _, revision = source.partition("@")
    if os.path.exists(source):  # noqa: PTH110  a path may hold an @
        place, revision = source, ""
    resolve = checkpoint.resolve_spec(place, revision=revision or None)
    if resolve.kind == "hub" and not _COMMIT.fullmatch(resolve.revision or ""):
        # A branch moves: what it was at another time says nothing about now, so the hub is asked again.
        resolve = dataclasses.replace(resolve, fingerprint=f"asked at {time.time():.6f}")
    return plan.SweepModel(name=name, source=resolve)


def _names(sources: Sequence[str]) -> list[str]:
    """A short name of each: the last part of a path, or the hub id; the whole source where that is not unique."""
    short = [Path(source).name.removesuffix(".gguf") if os.path.exists(source) else source for source in sources]  # noqa: PTH110
    return [name if short.count(name) == 1 else source for name, source in zip(short, sources, strict=True)]
