"""What may be asked of the compiler: single options, and which of them go together. Pure but for :func:`with_files`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qeff_engine.compiler_flags.table import ALIASES, FLAGS, MOST_CORES, OFFERED
from qeff_engine.compiler_flags.values import MOST_FILE_BYTES, Bare, InputFile, Value, numbers_of
from qeff_engine.errors import InvalidInput, near_miss

ESCAPE = "--compiler-flag"
_LEGACY_STATS = range(40, 61)


def canonical(given: Mapping[str, object]) -> dict[str, Value]:
    """Options in their one form: names as the compiler has them, values in the form of their kind, sorted by name.

    Underscores in names count as dashes. A bare flag that is False is left out, as if it had not been given.

    Raises:
        InvalidInput: an unknown name, one that the driver sets itself, one twice, or a value that is not legal.
    """
    found: dict[str, Value] = {}
    for word, value in given.items():
        name = name_of(word)
        if name in found:
            raise InvalidInput(f"The compiler option {name} is given twice, expected each once.")
        found[name] = value_of(name, value)
    return {name: found[name] for name in sorted(found) if found[name] is not False or not _is_bare(name)}


def name_of(word: str) -> str:
    """The name of an option that a user may give.

    Raises:
        InvalidInput: there is none of this name, or the driver sets it.
    """
    name = word.strip().lstrip("-").replace("_", "-")
    name = ALIASES.get(name, name)
    if name not in FLAGS:
        raise InvalidInput(
            f"There is no compiler option '{word}'.",
            advice=f"{near_miss(name, OFFERED)} A flag that is not in the table goes through {ESCAPE} -NAME=VALUE.",
        )
    if FLAGS[name].instead:
        raise InvalidInput(f"-{name} is not for users to give.", advice=FLAGS[name].instead)
    return name


def value_of(name: str, given: object) -> Value:
    """The one form of an option's value.

    Raises:
        InvalidInput: it is not legal.
    """
    kind = FLAGS[name].kind
    try:
        return kind.canonical(given)
    except ValueError:
        raise InvalidInput(f"The compiler option {name} is {_shown(given)}, expected {kind.expected}.") from None


def about(name: str) -> str:
    """What a flag does, for help."""
    return FLAGS[name].about


def with_files(given: Mapping[str, object]) -> dict[str, object]:
    """The options with the text of each file instead of its path.

    Raises:
        InvalidInput: a file cannot be read, is no text or too large.
    """
    return {word: _text_of_file(word, value) if _names_file(word, value) else value for word, value in given.items()}


def check(options: Mapping[str, Value], *, num_cores: int, num_devices: int, hw_version: str) -> None:
    """Refuse what the compiler has no support for together, before it starts.

    Args:
        options: from :func:`canonical`.
        num_cores: cores of one instance.
        num_devices: devices that share the program.
        hw_version: target, such as ``ai100``.

    Raises:
        InvalidInput: a combination that is not legal.
    """
    most = MOST_CORES.get(hw_version)
    if most is not None and num_cores > most:
        raise InvalidInput(f"The program asks for {num_cores} cores, expected at most the {most} of an {hw_version}.")
    for fault in _ALONE:
        _raise_if(fault(options))
    for part in numbers_of(options.get("mos", 1)):
        if part > num_cores:
            raise InvalidInput(
                f"mos is {options['mos']} with {num_cores} cores, expected at most the number of cores.",
                advice="Weights cannot be split over more cores than there are.",
            )
    if "mdts-mos" in options and num_devices == 1:
        raise InvalidInput("mdts-mos is given for one device, expected several: it splits weights over devices.")
    if "sdp-cluster-sizes" in options:
        _check_clusters(options, num_cores=num_cores, num_devices=num_devices)


def _check_clusters(options: Mapping[str, Value], *, num_cores: int, num_devices: int) -> None:
    """What does not go with the partitioning of a single device."""
    clusters = numbers_of(options["sdp-cluster-sizes"])
    said = f"sdp-cluster-sizes {options['sdp-cluster-sizes']}"
    if num_devices > 1:
        raise InvalidInput(f"{said} does not go with {num_devices} devices: it partitions a single one.")
    if "aic-enable-depth-first" in options:
        raise InvalidInput(f"{said} does not go with aic-enable-depth-first. Take one of them out.")
    if options.get("stats-level") in _LEGACY_STATS:
        raise InvalidInput(f"{said} does not go with stats-level {options['stats-level']}: levels 40 to 60 are older.")
    if sum(clusters) > num_cores:
        raise InvalidInput(f"{said} has {sum(clusters)} cores in all, expected at most the {num_cores} of the program.")
    parts = numbers_of(options.get("mos", 1))
    if len(parts) not in (1, len(clusters)):
        raise InvalidInput(f"mos {options['mos']} has {len(parts)} numbers for {len(clusters)} clusters.")


def _depth_first_memory(options: Mapping[str, Value]) -> str:
    alone = "aic-depth-first-mem" in options and "aic-enable-depth-first" not in options
    return "aic-depth-first-mem needs aic-enable-depth-first beside it." if alone else ""


def _percentile(options: Mapping[str, Value]) -> str:
    alone = "percentile-calibration-value" in options and options.get("quantization-calibration") != "Percentile"
    return "percentile-calibration-value needs quantization-calibration=Percentile beside it." if alone else ""


def _preparation(options: Mapping[str, Value]) -> str:
    both = {"host-preproc", "aic-preproc"} <= options.keys()
    return "host-preproc and aic-preproc exclude each other. Take one of them out." if both else ""


def _profiles(options: Mapping[str, Value]) -> str:
    if "convert-to-quantize" not in options:
        return ""
    others = [name for name in ("dump-profile", "load-profile") if name in options]
    return f"convert-to-quantize and {others[0]} exclude each other. Take one of them out." if others else ""


_ALONE: tuple[Callable[[Mapping[str, Value]], str], ...] = (_depth_first_memory, _percentile, _preparation, _profiles)


def _raise_if(fault: str) -> None:
    if fault:
        raise InvalidInput(f"The compiler option {fault}")


def unlisted(flags: Sequence[str]) -> tuple[str, ...]:
    """Flags that are not in the table, as they go to the compiler; sorted, since each may stand once.

    Raises:
        InvalidInput: one is no flag, stands in the table, or is given twice.
    """
    names: dict[str, str] = {}
    for flag in flags:
        match = re.fullmatch(r"-([A-Za-z][\w-]*)(=.*)?", flag, re.DOTALL)
        if match is None:
            raise InvalidInput(f"{ESCAPE} is {_shown(flag)}, expected -NAME or -NAME=VALUE.")
        name = match[1]
        known = FLAGS.get(ALIASES.get(name, name))
        if known is not None:
            advice = known.instead or f"Give it as the compiler option {known.name}, which is checked."
            raise InvalidInput(f"{ESCAPE} is for flags that are not in the table, and -{name} is.", advice=advice)
        if name in names:
            raise InvalidInput(f"{ESCAPE} has -{name} twice, expected each once.")
        names[name] = flag
    return tuple(sorted(names.values()))


def joined(arguments: Sequence[str]) -> list[str]:
    """A command line in which the escape and its flag are one word: argparse takes what begins with a dash for an
    option of its own."""
    found: list[str] = []
    for word in arguments:
        if found and found[-1] == ESCAPE:
            found[-1] = f"{ESCAPE}={word}"
        else:
            found.append(word)
    return found


def in_words(options: Mapping[str, Value]) -> str:
    """Options for people, such as ``mos 2 aic-enable-depth-first``; of a file only that there is one."""
    return " ".join(word_of(name, value) for name, value in options.items())


def word_of(name: str, value: Value) -> str:
    """One option for people."""
    if value is True:
        return name
    if value is False:
        return f"{name} off"
    return f"{name} given" if isinstance(FLAGS[name].kind, InputFile) else f"{name} {value}"


def _is_bare(name: str) -> bool:
    return isinstance(FLAGS[name].kind, Bare)


def _names_file(word: str, value: object) -> bool:
    flag = FLAGS.get(word.strip().lstrip("-").replace("_", "-"))
    return flag is not None and isinstance(flag.kind, InputFile) and not str(value).endswith("\n")


def _text_of_file(word: str, value: object) -> str:
    path = Path(str(value))
    try:
        content = path.read_bytes()
        text = content.decode()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InvalidInput(f"The compiler option {word} is the file {path}, which cannot be read: {why}.") from error
    if not text.strip() or len(content) >= MOST_FILE_BYTES:
        raise InvalidInput(
            f"The compiler option {word} is the file {path} of {len(content)} bytes, expected text of less than "
            f"{MOST_FILE_BYTES}."
        )
    return text if text.endswith("\n") else text + "\n"


def _shown(given: object) -> str:
    text = repr(given) if not isinstance(given, str) else f"'{given}'"
    return text if len(text) <= 60 else f"{text[:60]}..."
