"""Code that comes with a checkpoint, known to transformers for the time of a block and to nobody afterwards.

The files are imported from the bytes that consent was given to: nothing is written, and an import that leads out of
them or to a file that is not among them fails. Their modules and classes are gone from the interpreter's tables and
from transformers' at the end of the block. Meanwhile Python's sockets reach no other host, secrets are not in the
environment, and transformers loads no other code; threads that were there before may connect to whom they want. That
keeps honest code from depending on what consent was not given to; it is no prison for code that wants out.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from qeff_engine import patching
from qeff_engine.code_files import Code, Reference
from qeff_engine.errors import EngineError, InvalidInput, Unsupported

_CONFIG, _TOKENIZER, _IMAGE_PROCESSOR, _MODEL = "AutoConfig", "AutoTokenizer", "AutoImageProcessor", "AutoModel"
_SECRETS = ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN")
_WITH_TABLES = (
    "configuration",
    "modeling",
    "tokenization",
    "processing",
    "image_processing",
    "feature_extraction",
    "video_processing",
)
_PACKAGE, _DIGITS = "remote_code_", 16


@contextlib.contextmanager
def introduced(directory: Path, *, code: Code) -> Iterator[list[str]]:
    """Let transformers know the classes of a checkpoint's code; gives what of it is left out, and why.

    Left out are tokenizers and processors that need a package which is not installed: not every stage needs them.

    Args:
        directory: the checkpoint; only tracebacks and ``__file__`` name it.
        code: what consent was given to.

    Raises:
        InvalidInput: the code cannot be imported, or has not what the configs name.
        Unsupported: the model's class or its config needs a package that is not installed, or the code fails later on,
            in the block.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_without_secrets())
        stack.enter_context(_own_tables())
        stack.enter_context(patching.attributes(_closed_doors()))
        files = stack.enter_context(_importable(code, directory=directory))
        left_out = _register(code, files=files, model_type=_model_type(directory))
        try:
            yield left_out
        except EngineError:
            raise
        except (Exception, SystemExit) as error:
            place = files.place_of(error)
            if not place:
                raise
            raise Unsupported(f"The model's code fails at {place}: {type(error).__name__}: {error}") from error


def is_of_checkpoint(kind: Any) -> bool:
    """Whether a class is of the code of a checkpoint, and not of an installed package."""
    return str(getattr(kind, "__module__", "")).startswith(_PACKAGE)


class _Files(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the files of a checkpoint as modules of one package."""

    def __init__(self, contents: Mapping[str, bytes], *, package: str, directory: Path) -> None:
        self._contents, self._directory = contents, directory
        self.package = package

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Where a module of the package is; None for all others."""
        package, *parts = fullname.split(".")
        if package != self.package:
            return None
        inside = "".join(f"{part}/" for part in parts)
        is_package = any(name.startswith(inside) for name in self._contents)
        file = f"{inside}__init__.py" if is_package else f"{'/'.join(parts)}.py"
        if not is_package and file not in self._contents:
            return None
        origin = str(self._directory / file)
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=origin, is_package=is_package, loader_state=file)
        spec.has_location = True
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Run a file; a folder without one of its own is an empty module."""
        assert module.__spec__ is not None
        content = self._contents.get(module.__spec__.loader_state, b"")
        # Consent was given to these bytes.
        exec(compile(content, str(module.__file__), "exec", dont_inherit=True), vars(module))  # noqa: S102

    def place_of(self, error: BaseException) -> str:
        """The innermost line of the files that an exception came through; empty when it came through none."""
        lines = [
            f"{Path(frame.f_code.co_filename).name}, line {line}"
            for frame, line in traceback.walk_tb(error.__traceback__)
            if str(frame.f_globals.get("__name__")).partition(".")[0] == self.package
        ]
        return lines[-1] if lines else ""

    def find(self, reference: Reference) -> Any:
        """The class that a config names.

        Raises:
            InvalidInput, Unsupported: it cannot be had.
        """
        file = f"{reference.module}.py"
        try:
            module = importlib.import_module(f"{self.package}.{reference.module}")
        except EngineError:
            raise
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == self.package:
                missing = (error.name or "").removeprefix(f"{self.package}.").replace(".", "/")
                raise InvalidInput(f"{file} imports {missing}.py, which does not come with the checkpoint.") from error
            raise Unsupported(
                f"{file} needs the package '{error.name}', which is not installed here.",
                advice="Install it where stages run, if you trust it as well.",
            ) from error
        except (Exception, SystemExit) as error:  # whatever a stranger's code does when it is imported
            raise InvalidInput(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
        found = getattr(module, reference.name, None)
        if not isinstance(found, type):
            raise InvalidInput(f"{file} has no class {reference.name}, which auto_map names.")
        return found


@contextlib.contextmanager
def _importable(code: Code, *, directory: Path) -> Iterator[_Files]:
    files = _Files(
        code.contents, package=f"{_PACKAGE}{code.digest.partition(':')[2][:_DIGITS]}", directory=directory.absolute()
    )
    sys.meta_path.insert(0, files)
    try:
        yield files
    finally:
        sys.meta_path.remove(files)
        for name in [name for name in sys.modules if name.partition(".")[0] == files.package]:
            del sys.modules[name]


def _model_type(directory: Path) -> str:
    return str(json.loads((directory / "config.json").read_text(encoding="utf-8")).get("model_type"))


def _register(code: Code, *, files: _Files, model_type: str) -> list[str]:
    """Tell transformers' auto classes of the code; what is left out, and why."""
    import transformers

    auto_config: Any = transformers.AutoConfig
    left_out = []
    if _CONFIG in code.references:
        _tell(auto_config, model_type, _only(code, _CONFIG, files=files))
    config_class = _config_class(model_type)
    for auto in sorted(set(code.references) - {_CONFIG}):
        known = getattr(transformers, auto, None)  # none of an auto class that transformers does not have any more
        if known is None:
            continue
        try:
            _register_one(known, code, auto=auto, files=files, config_class=config_class)
        except Unsupported as error:
            if auto.startswith(_MODEL):
                raise
            left_out.append(f"{auto} of the model's code is left out: {error}")
    return left_out


def _register_one(known: Any, code: Code, *, auto: str, files: _Files, config_class: Any) -> None:
    """Tell one auto class of a model, a tokenizer or a processor."""
    if auto == _TOKENIZER:
        found = [None if item is None else files.find(item) for item in code.references[auto]]
        slow, fast = (*found, None)[:2]
        _tell(known, config_class, slow_tokenizer_class=slow, fast_tokenizer_class=fast)
    elif auto == _IMAGE_PROCESSOR:
        _tell(known, config_class, slow_image_processor_class=_only(code, auto, files=files))
    else:
        _tell(known, config_class, _only(code, auto, files=files))


def _only(code: Code, auto: str, *, files: _Files) -> Any:
    """The class for an auto class that has one."""
    reference = next((item for item in code.references[auto] if item is not None), None)
    if reference is None:
        raise InvalidInput(f"auto_map names nothing for {auto}, expected module.Class.")
    return files.find(reference)


def _tell(auto: Any, key: Any, *classes: Any, **named: Any) -> None:
    try:
        auto.register(key, *classes, **named, exist_ok=True)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidInput(f"transformers refuses a class of the model's code for {auto.__name__}: {error}") from error


def _config_class(model_type: str) -> Any:
    from transformers.models.auto import configuration_auto

    try:
        return configuration_auto.CONFIG_MAPPING[model_type]
    except KeyError:
        raise InvalidInput(
            f"auto_map names no AutoConfig, and transformers does not know the architecture '{model_type}'."
        ) from None


@contextlib.contextmanager
def _own_tables() -> Iterator[None]:
    """Let what is registered with transformers in the block be forgotten afterwards."""
    from transformers.models.auto import auto_factory, configuration_auto, tokenization_auto

    kinds = (auto_factory._LazyAutoMapping, configuration_auto._LazyConfigMapping)
    modules = [importlib.import_module(f"transformers.models.auto.{name}_auto") for name in _WITH_TABLES]
    tables = {id(value): value for module in modules for value in vars(module).values() if isinstance(value, kinds)}
    names = ("REGISTERED_TOKENIZER_CLASSES", "REGISTERED_FAST_ALIASES")
    with patching.attributes(
        [
            *((table, "_extra_content", dict(table._extra_content)) for table in tables.values()),
            *((tokenization_auto, name, dict(getattr(tokenization_auto, name))) for name in names),
        ]
    ):
        yield


@contextlib.contextmanager
def _without_secrets() -> Iterator[None]:
    """Take what only the resolve stage needs out of the environment."""
    hidden = {name: os.environ.pop(name) for name in _SECRETS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _closed_doors() -> list[tuple[Any, str, Any]]:
    """Replacements of what would bring code or data in to which no consent was given."""
    from huggingface_hub import constants
    from transformers import dynamic_module_utils

    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}

    def near(original: Any) -> Any:
        def call(self: socket.socket, address: Any) -> Any:
            is_of_the_code = threading.get_ident() not in others
            if is_of_the_code and self.family in (socket.AF_INET, socket.AF_INET6):
                raise PermissionError(f"Code that comes with a model may not connect to {address!r}.")
            return original(self, address)

        return call

    def no_other_code(repository: object, file: object, *_: object, **__: object) -> str:
        raise OSError(f"Code that comes with a model may not load more of it: {file} of {repository}.")

    return [
        (socket.socket, "connect", near(connect)),
        (socket.socket, "connect_ex", near(connect_ex)),
        (dynamic_module_utils, "get_cached_module_file", no_other_code),
        (constants, "HF_HUB_OFFLINE", True),
        (constants, "HF_TOKEN_PATH", os.devnull),
    ]
