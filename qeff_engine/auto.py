"""The public classes, named as users of Qualcomm's library know them.

::

    model = QEFFAutoModelForCausalLM.from_pretrained(path)
    model.compile(num_cores=16)
    print(model.generate(prompts=["The capital of France is"]))

They are thin: every method runs a stage as the farm does, and keeps its result by content, so that nothing is done
twice. Options that a method does not name do not exist; flags of the compiler go into ``compiler_options``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qeff_engine import exported, spec, tasks
from qeff_engine.compiler_flags import asking
from qeff_engine.errors import InvalidInput
from qeff_engine.library import loaded, model
from qeff_engine.library.compiler_options import asked
from qeff_engine.library.generating import Generating, as_tuple
from qeff_engine.library.pictures import saved_pictures
from qeff_engine.library.results import Embedded, GeneratedTexts


class QEFFAutoModelForCausalLM(Generating):
    """A model that continues texts."""

    task = tasks.TEXT_GENERATION

    def export(self, export_dir: str | Path | None = None) -> str:
        """Export to ONNX and return the path of the graph.

        Args:
            export_dir: put the export there, in a directory of its own; else it stays in the cache.
        """
        return str(self._export(self._export_spec(), export_dir=export_dir)[exported.DECODER])

    def compile(
        self,
        num_cores: int = 16,
        *,
        prefill_seq_len: int = 32,
        ctx_len: int = 128,
        batch_size: int = 1,
        num_devices: int = 1,
        mxfp6_matmul: bool = False,
        mxint8_kv_cache: bool = False,
        mos: int | None = None,
        ols: int | None = None,
        aic_enable_depth_first: bool = False,
        compiler_options: Mapping[str, object] | None = None,
        compiler_timeout_s: float | None = None,
        onnx_path: str | Path | None = None,
        compile_dir: str | Path | None = None,
    ) -> str:
        """Compile for the card, exporting first where needed, and return the program's directory.

        Args:
            num_cores: cores (NSPs) of one instance.
            prefill_seq_len: tokens of one prefill call; longer prompts take several.
            ctx_len: KV positions kept per sequence: prompt and generated tokens together.
            batch_size: sequences decoded together.
            num_devices: devices that the program is sliced over.
            mxfp6_matmul: compress the weights to MXFP6.
            mxint8_kv_cache: keep the KV cache in MXINT8.
            mos: over how many cores weights are split to save on-chip memory; None leaves it to the compiler.
            ols: factor by which operations are split more finely; None leaves it to the compiler.
            aic_enable_depth_first: let the compiler schedule depth first.
            compiler_options: further flags of the compiler by name, such as ``{"allocator_dealloc_delay": 2}``;
                underscores count as dashes, a path stands for its file. docs/compiler-flags.md has all of them.
            compiler_timeout_s: seconds after which the compiler is killed; None lets it run for ever.
            onnx_path: graph of an earlier export, instead of exporting.
            compile_dir: put the program there, in a directory of its own; else it stays in the cache.

        Raises:
            EngineError: the model cannot be exported, or the compiler refused it.
        """
        compile_spec = self._decoder_spec(
            num_cores,
            prefill_seq_len=prefill_seq_len,
            ctx_len=ctx_len,
            batch_size=batch_size,
            num_devices=num_devices,
            mxfp6_matmul=mxfp6_matmul,
            mxint8_kv_cache=mxint8_kv_cache,
            compiler_options=asked(
                compiler_options, mos=mos, ols=ols, aic_enable_depth_first=aic_enable_depth_first or None
            ),
        )
        return str(
            self._compile(
                compile_spec, onnx_path=onnx_path, compile_dir=compile_dir, compiler_timeout_s=compiler_timeout_s
            )[exported.DECODER]
        )

    def generate(
        self,
        tokenizer: Any = None,
        prompts: Sequence[str] = (spec.DEFAULT_PROMPT,),
        *,
        generation_len: int | None = None,
        stream: bool = False,
        device_id: Sequence[int] | None = None,
    ) -> GeneratedTexts:
        """Continue prompts greedily on the card.

        Args:
            tokenizer: a tokenizer of transformers; default: the checkpoint's own.
            prompts: texts; as many as the batch size run together.
            generation_len: tokens per prompt at most; None fills the context.
            stream: write the first prompt's text to stdout while it comes.
            device_id: devices by their numbers; default: free ones.

        Raises:
            InvalidInput: the model is not compiled, or a prompt does not fit the program.
            DeviceLost: no device is free.
        """
        return self._generate(
            tokenizer, prompts=prompts, generation_len=generation_len, stream=stream, device_id=device_id
        )


class QEFFAutoModelForImageTextToText(Generating):
    """A model that continues texts with pictures in them. It has two programs: one sees, one speaks."""

    task = tasks.IMAGE_TEXT_TO_TEXT

    def export(self, export_dir: str | Path | None = None) -> list[str]:
        """Export to ONNX and return the paths of the vision graph and of the language graph.

        Args:
            export_dir: put the export there, in a directory of its own; else it stays in the cache.
        """
        paths = self._export(self._export_spec(), export_dir=export_dir)
        return [str(paths[exported.VISION]), str(paths[exported.DECODER])]

    def compile(
        self,
        num_cores: int = 16,
        *,
        prefill_seq_len: int = 32,
        ctx_len: int = 128,
        batch_size: int = 1,
        num_devices: int = 1,
        mxfp6_matmul: bool = False,
        mxint8_kv_cache: bool = False,
        mos: int | None = None,
        ols: int | None = None,
        aic_enable_depth_first: bool = False,
        compiler_options: Mapping[str, object] | None = None,
        compiler_timeout_s: float | None = None,
        onnx_path: str | Path | None = None,
        compile_dir: str | Path | None = None,
    ) -> dict[str, str]:
        """Compile both programs for the card, exporting first where needed.

        Args:
            num_cores: cores (NSPs) of one instance.
            prefill_seq_len: tokens of one prefill call; a picture may span several.
            ctx_len: KV positions kept per sequence: picture, prompt and generated tokens together.
            batch_size: sequences decoded together.
            num_devices: devices that the programs are sliced over.
            mxfp6_matmul: compress the weights to MXFP6.
            mxint8_kv_cache: keep the KV cache in MXINT8.
            mos: over how many cores weights are split to save on-chip memory; None leaves it to the compiler.
            ols: factor by which operations are split more finely; None leaves it to the compiler.
            aic_enable_depth_first: let the compiler schedule depth first.
            compiler_options: further flags of the compiler by name, such as ``{"allocator_dealloc_delay": 2}``;
                underscores count as dashes, a path stands for its file. docs/compiler-flags.md has all of them.
            compiler_timeout_s: seconds after which the compiler is killed; None lets it run for ever.
            onnx_path: one of the graphs of an earlier export, instead of exporting.
            compile_dir: put the programs there, in a directory of their own; else they stay in the cache.

        Returns:
            The programs' directories: ``vision_qpc_path`` and ``lang_qpc_path``.

        Raises:
            EngineError: the model cannot be exported, or the compiler refused it.
        """
        compile_spec = self._decoder_spec(
            num_cores,
            prefill_seq_len=prefill_seq_len,
            ctx_len=ctx_len,
            batch_size=batch_size,
            num_devices=num_devices,
            mxfp6_matmul=mxfp6_matmul,
            mxint8_kv_cache=mxint8_kv_cache,
            compiler_options=asked(
                compiler_options, mos=mos, ols=ols, aic_enable_depth_first=aic_enable_depth_first or None
            ),
        )
        paths = self._compile(
            compile_spec, onnx_path=onnx_path, compile_dir=compile_dir, compiler_timeout_s=compiler_timeout_s
        )
        return {"vision_qpc_path": str(paths[exported.VISION]), "lang_qpc_path": str(paths[exported.DECODER])}

    def generate(
        self,
        tokenizer: Any = None,
        prompts: Sequence[str] = (),
        images: Sequence[Any] = (),
        *,
        generation_len: int | None = None,
        stream: bool = False,
        device_id: Sequence[int] | None = None,
    ) -> GeneratedTexts:
        """Continue prompts with pictures in them, greedily, on the card.

        Args:
            tokenizer: a tokenizer of transformers; default: the checkpoint's own.
            prompts: texts, each with the model's image token where its picture belongs.
            images: a picture for each prompt, or one for all: paths or PIL images.
            generation_len: tokens per prompt at most; None fills the context.
            stream: write the first prompt's text to stdout while it comes.
            device_id: devices by their numbers; default: free ones.

        Raises:
            InvalidInput: the model is not compiled, a picture cannot be read, or a prompt does not fit the program.
            DeviceLost: no device is free.
        """
        with self._store.scratch() as scratch:
            return self._generate(
                tokenizer,
                prompts=prompts,
                generation_len=generation_len,
                stream=stream,
                device_id=device_id,
                images=saved_pictures(images, directory=scratch),
            )


class QEFFAutoModel(model.Model):
    """A model that embeds texts. Its ``from_pretrained`` and ``transform`` pick the class by the model's config."""

    task = tasks.FEATURE_EXTRACTION

    def __init__(self, model: Any, *, pooling: str | None = None, cache_dir: str | Path | None = None) -> None:
        """Take a loaded transformers encoder, with its weights as they are now.

        Args:
            model: an encoder of transformers; its weights are saved in the cache, once per content.
            pooling: what is made of the last hidden states inside the graph: ``mean``, ``max`` or ``cls`` over the
                tokens; None leaves them as they are.
            cache_dir: where results of stages are kept; default: ``QEFF_HOME``, else the user's cache directory.

        Raises:
            InvalidInput: it is not an encoder of transformers, or there is no such pooling.
        """
        super().__init__(model, cache_dir=cache_dir)
        self._set_pooling(pooling)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        pooling: str | None = None,
        revision: str | None = None,
        trust_remote_code: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> Any:
        """Take a model from a directory, a ``.gguf`` file or a hub id; its config picks the class of the object.

        Args:
            pretrained_model_name_or_path: the directory, file or id.
            pooling: for encoders, as in the constructor.
            revision: commit, branch or tag of a hub id.
            trust_remote_code: consent to the code that comes with the model: the commit of a hub id, which is then its
                revision, or the digest of a directory's code. True is refused: it does not say to what.
            cache_dir: where downloads and results of stages are kept; default: ``QEFF_HOME``, else the user's cache
                directory.

        Raises:
            InvalidInput: there is no such model, its files are damaged, it needs its own code and there is no consent
                to exactly that, or ``pooling`` is given for a model that generates.
            Unsupported: it is a kind of model that no class is for.
        """
        store = model.store_at(cache_dir)
        name = str(pretrained_model_name_or_path)
        snapshot = model.resolved(name, revision=revision, trust_remote_code=trust_remote_code, store=store)
        kind = _CLASS_OF_TASK[tasks.of_snapshot(snapshot.directory)]
        found = kind._of_snapshot(snapshot, store=store, name=name)
        if isinstance(found, QEFFAutoModel):
            found._set_pooling(pooling)
        elif pooling:
            raise InvalidInput(f"pooling is '{pooling}' for a {kind.__name__}, expected none: only encoders pool.")
        return found

    @classmethod
    def of_loaded(cls, loaded_model: Any) -> Any:
        """The object of the class that a loaded model asks for; an object of ours is returned as it is."""
        if isinstance(loaded_model, model.Model):
            return loaded_model
        return _CLASS_OF_TASK[loaded.task_of(loaded_model)](loaded_model)

    def export(self, export_dir: str | Path | None = None) -> str:
        """Export to ONNX and return the path of the graph.

        Args:
            export_dir: put the export there, in a directory of its own; else it stays in the cache.
        """
        return str(self._export(self._export_spec(), export_dir=export_dir)[exported.ENCODER])

    def compile(
        self,
        num_cores: int = 16,
        *,
        seq_len: int = 32,
        batch_size: int = 1,
        num_devices: int = 1,
        mxfp6_matmul: bool = False,
        mos: int | None = None,
        ols: int | None = None,
        aic_enable_depth_first: bool = False,
        compiler_options: Mapping[str, object] | None = None,
        compiler_timeout_s: float | None = None,
        onnx_path: str | Path | None = None,
        compile_dir: str | Path | None = None,
    ) -> str:
        """Compile for the card, exporting first where needed, and return the program's directory.

        Args:
            num_cores: cores (NSPs) of one instance.
            seq_len: tokens of a text at most; shorter ones are padded.
            batch_size: texts embedded together.
            num_devices: devices that the program is sliced over.
            mxfp6_matmul: compress the weights to MXFP6.
            mos: over how many cores weights are split to save on-chip memory; None leaves it to the compiler.
            ols: factor by which operations are split more finely; None leaves it to the compiler.
            aic_enable_depth_first: let the compiler schedule depth first.
            compiler_options: further flags of the compiler by name, such as ``{"allocator_dealloc_delay": 2}``;
                underscores count as dashes, a path stands for its file. docs/compiler-flags.md has all of them.
            compiler_timeout_s: seconds after which the compiler is killed; None lets it run for ever.
            onnx_path: graph of an earlier export, instead of exporting.
            compile_dir: put the program there, in a directory of its own; else it stays in the cache.

        Raises:
            EngineError: the model cannot be exported, or the compiler refused it.
        """
        compile_spec = spec.CompileSpec(
            num_cores=num_cores,
            num_devices=num_devices,
            batch_size=batch_size,
            seq_len=seq_len,
            precision="mxfp6" if mxfp6_matmul else "fp16",
            compiler_options=asking.canonical(
                asked(compiler_options, mos=mos, ols=ols, aic_enable_depth_first=aic_enable_depth_first or None)
            ),
        )
        return str(
            self._compile(
                compile_spec, onnx_path=onnx_path, compile_dir=compile_dir, compiler_timeout_s=compiler_timeout_s
            )[exported.ENCODER]
        )

    def generate(
        self,
        tokenizer: Any = None,
        prompts: Sequence[str] = (spec.DEFAULT_PROMPT,),
        *,
        device_id: Sequence[int] | None = None,
    ) -> Embedded:
        """Embed texts on the card.

        Args:
            tokenizer: a tokenizer of transformers; default: the checkpoint's own.
            prompts: the texts.
            device_id: devices by their numbers; default: free ones.

        Raises:
            InvalidInput: the model is not compiled, or a text is longer than the program's sequence.
            DeviceLost: no device is free.
        """
        result: Embedded = self._run(
            spec.RunSpec(prompts=as_tuple(prompts), check_parity=False),
            tokenizer=tokenizer,
            device_ids=device_id,
            read=Embedded.of_measurement,
        )
        return result

    def _set_pooling(self, pooling: str | None) -> None:
        self._pooling = spec.ExportSpec(pooling=pooling or "").pooling

    def _export_spec(self) -> spec.ExportSpec:
        return spec.ExportSpec(task=self.task, pooling=self._pooling)


QEffAutoModel = QEFFAutoModel

_CLASS_OF_TASK: dict[str, type[model.Model]] = {
    kind.task: kind for kind in (QEFFAutoModelForCausalLM, QEFFAutoModelForImageTextToText, QEFFAutoModel)
}
