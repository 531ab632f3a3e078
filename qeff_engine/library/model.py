"""What all public classes share: a model's way through the stages, with the results in a cache."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from qeff_engine import checkpoint, exported, files, pipeline, program, spec, stage, tasks
from qeff_engine.errors import InvalidInput
from qeff_engine.library import cache, loaded
from qeff_engine.library.transformation import Transformation

_KEY_LENGTH = 16  # hexadecimal digits of a key in the name of a directory: enough within one directory


class Model:
    """A model on its way from checkpoint to program. Not for use by itself: see :mod:`qeff_engine.auto`."""

    task: ClassVar[str]
    transform = Transformation()

    def __init__(self, model: Any, *, cache_dir: str | Path | None = None) -> None:
        """Take a loaded transformers model, with its weights as they are now.

        Args:
            model: a model of transformers; its weights are saved in the cache, once per content.
            cache_dir: where results of stages are kept; default: ``QEFF_HOME``, else the user's cache directory.

        Raises:
            InvalidInput: it is not a transformers model, or one for another class.
        """
        self._require_task(loaded.task_of(model), name=type(model).__name__)
        store = store_at(cache_dir)
        self._begin(resolved(str(loaded.save(model, cache=store)), store=store), store=store)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        trust_remote_code: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> Self:
        """Take a model from a directory, a ``.gguf`` file or a hub id. No weights are loaded.

        Args:
            pretrained_model_name_or_path: the directory, file or id.
            revision: commit, branch or tag of a hub id.
            trust_remote_code: consent to the code that comes with the model: the commit of a hub id, which is then its
                revision, or the digest of a directory's code. True is refused: it does not say to what.
            cache_dir: where downloads and results of stages are kept; default: ``QEFF_HOME``, else the user's cache
                directory.

        Raises:
            InvalidInput: there is no such model, its files are damaged, it is one for another class, or it needs its
                own code and there is no consent to exactly that.
        """
        store = store_at(cache_dir)
        snapshot = resolved(
            str(pretrained_model_name_or_path), revision=revision, trust_remote_code=trust_remote_code, store=store
        )
        return cls._of_snapshot(snapshot, store=store, name=str(pretrained_model_name_or_path))

    @classmethod
    def of_loaded(cls, model: Any) -> Self:
        """The object for a loaded model; an object of this class is returned as it is."""
        return model if isinstance(model, cls) else cls(model)

    @classmethod
    def _of_snapshot(cls, snapshot: cache.Entry, *, store: cache.StageCache, name: str) -> Self:
        cls._require_task(tasks.of_snapshot(snapshot.directory), name=name)
        model = cls.__new__(cls)
        model._begin(snapshot, store=store)
        return model

    @classmethod
    def _require_task(cls, task: str, *, name: str) -> None:
        if task != cls.task:
            raise InvalidInput(
                f"{name} is a model for {task}, and {cls.__name__} is for {cls.task}.",
                advice="QEFFAutoModel.from_pretrained and QEFFAutoModel.transform pick the class.",
            )

    def _begin(self, snapshot: cache.Entry, *, store: cache.StageCache) -> None:
        self._store = store
        self._snapshot = snapshot
        self._onnx: cache.Entry | None = None
        self._program: cache.Entry | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._snapshot.directory})"

    def quantize(self, method: str, bits: int = 4, group_size: int = 64) -> str:
        """Quantize the weights; what is exported later is the quantized model.

        Args:
            method: ``rtn``, ``gptq`` or ``awq``.
            bits: bits of a weight.
            group_size: input columns that share a scale; -1 for the whole row.

        Returns:
            The directory of the quantized checkpoint, in a format that transformers reads.
        """
        quantize_spec = spec.QuantizeSpec(method=method, bits=bits, group_size=group_size)
        self._snapshot = self._store.run(quantize_spec, inputs={stage.SNAPSHOT: self._snapshot})
        self._onnx = self._program = None
        return str(self._snapshot.directory)

    def _export(self, export_spec: spec.ExportSpec, *, export_dir: str | Path | None) -> dict[str, Path]:
        """The ONNX file of each component."""
        self._onnx = self._store.run(export_spec, inputs={stage.SNAPSHOT: self._snapshot})
        directory = _placed(self._onnx, directory=export_dir, prefix="onnx")
        components = exported.load(directory).components
        return {name: directory / component.file for name, component in components.items()}

    def _compile(
        self,
        compile_spec: spec.CompileSpec,
        *,
        onnx_path: str | Path | None,
        compile_dir: str | Path | None,
        compiler_timeout_s: float | None,
    ) -> dict[str, Path]:
        """The program directory of each component.

        Args:
            compile_spec: what to compile for.
            onnx_path: an ONNX file of an earlier export; its directory describes it.
            compile_dir: where to put the program beside the cache.
            compiler_timeout_s: seconds after which a run of the compiler is killed; None for no limit.
        """
        if compiler_timeout_s is not None and not compiler_timeout_s > 0:
            raise InvalidInput(f"compiler_timeout_s is {compiler_timeout_s}, expected seconds above 0, or None.")
        if onnx_path is not None:
            self._onnx = self._store.adopt(Path(onnx_path).absolute().parent)
        elif self._onnx is None:
            self._export(self._export_spec(), export_dir=None)
        assert self._onnx is not None
        self._program = self._store.run(
            compile_spec, inputs={stage.ONNX: self._onnx}, compiler_limit_s=compiler_timeout_s
        )
        directory = _placed(self._program, directory=compile_dir, prefix="qpc")
        return {name: directory / name / "qpc" for name in program.load(directory).commands}

    def _export_spec(self) -> spec.ExportSpec:
        """How the model is exported when nobody exported it before."""
        return spec.ExportSpec(task=self.task)

    def _run(
        self,
        run_spec: spec.RunSpec,
        *,
        tokenizer: Any,
        device_ids: Sequence[int] | None,
        read: Callable[[dict[str, Any], Path], Any],
        on_token: Callable[[int, int], None] | None = None,
        images: Path | None = None,
    ) -> Any:
        """What ``read`` makes of the measurement and its directory. A measurement is never cached."""
        if self._program is None:
            raise InvalidInput("The model is not compiled yet.", advice="Call compile() first.")
        with self._store.scratch() as scratch:
            inputs = {stage.PROGRAM: self._program.directory, stage.SNAPSHOT: self._snapshot.directory}
            if tokenizer is not None:
                inputs[stage.SNAPSHOT] = _with_tokenizer(self._snapshot.directory, tokenizer, at=scratch / "snapshot")
            if images is not None:
                inputs[stage.IMAGES] = images
            num_cores = program.load(self._program.directory).compile_spec.num_cores
            context = stage.StageContext(
                out=scratch / "out",
                work=scratch / "work",
                inputs=inputs,
                emit=cache.tell_log,
                devices=tuple(stage.DeviceGrant(qid=qid, num_cores=num_cores) for qid in device_ids or ()),
                on_token=on_token,
                trust_remote_code=stage.AS_RESOLVED,
            )
            context.out.mkdir()
            context.work.mkdir()
            pipeline.run_stage(run_spec, context=context)
            return read(json.loads((context.out / "measurement.json").read_text()), context.out)


def store_at(cache_dir: str | Path | None) -> cache.StageCache:
    """The cache at a directory, or at the default one."""
    return cache.StageCache(None if cache_dir is None else Path(cache_dir))


def resolved(
    source: str,
    *,
    revision: str | None = None,
    trust_remote_code: str | bool | None = None,
    store: cache.StageCache,
) -> cache.Entry:
    """The snapshot of a directory, ``.gguf`` file or hub id."""
    resolve_spec = checkpoint.resolve_spec(source, revision=revision, trust_remote_code=trust_remote_code)
    if resolve_spec.kind == "hub" and not spec.COMMIT.fullmatch(resolve_spec.revision or ""):
        # A branch moves: what it was at another time says nothing about now, so the hub is asked again.
        resolve_spec = dataclasses.replace(resolve_spec, fingerprint=f"asked at {time.time():.6f}")
    return store.run(resolve_spec)


def _placed(entry: cache.Entry, *, directory: str | Path | None, prefix: str) -> Path:
    """Where the artifact is: in the cache, or in a directory of its own in the caller's."""
    if directory is None:
        return entry.directory
    return cache.place(entry, directory=Path(directory), name=f"{prefix}-{entry.key[:_KEY_LENGTH]}")


def _with_tokenizer(snapshot: Path, tokenizer: Any, *, at: Path) -> Path:
    """A snapshot that has the caller's tokenizer instead of its own."""
    tokenizer.save_pretrained(at)
    for path in snapshot.rglob("*"):
        target = at / path.relative_to(snapshot)
        is_of_tokenizer = path.name.startswith("tokenizer") and path.suffix != ".py"
        if path.is_file() and not target.exists() and not is_of_tokenizer:
            files.link_or_copy(path, target)
    return at
