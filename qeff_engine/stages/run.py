"""The ``run`` stage: a program is asked on a device, measured, and compared with the original model.

::

    measurement.json    prompts, tokens, texts, metrics, parity, device
    embeddings.npy      of an encoder: [texts, length, hidden], or [texts, hidden] when pooled
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qeff_engine import embedding, events, exported, generation, images, parity, program, spec, stage, vision_language
from qeff_engine.errors import DeviceLost, InvalidInput
from qeff_engine.sdk import devices, location, runner, sensors
from qeff_engine.sdk.queued import QueuedSession
from qeff_engine.sdk.session import Array, Session
from qeff_engine.tokenizer import Tokenizer

FILE_NAME = "measurement.json"
EMBEDDINGS_NAME = "embeddings.npy"
EMBEDDING_BOUND = 2e-2  # float16 against float32 over the layers of an encoder
_TOKENS_BETWEEN_EVENTS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """Everything that both kinds of measurement need."""

    run_spec: spec.RunSpec
    context: stage.StageContext
    sdk: location.Sdk
    directory: Path
    compiled: program.Program
    model: exported.ExportedModel
    devices: tuple[devices.Device, ...]
    tokenizer: Tokenizer

    def session(self, component: str) -> Session:
        """The component's program, not yet active."""
        qids = [device.qid for device in self.devices]
        return Session(self.sdk, program=self.program_of(component), qids=qids)

    def program_of(self, component: str) -> Path:
        """The directory of the component's program."""
        return self.directory / component / "qpc"

    @property
    def exact(self) -> bool:
        """Whether nothing but rounding to float16 lies between the original's answers and the program's."""
        asked = self.compiled.compile_spec
        unquantized = self.original == self.context.inputs[stage.SNAPSHOT]
        return unquantized and (asked.precision, asked.kv_precision) == ("fp16", "fp16") and not asked.compiler_options

    @property
    def original(self) -> Path:
        """The snapshot that answers are compared with."""
        inputs = self.context.inputs
        return inputs.get(stage.ORIGINAL, inputs[stage.SNAPSHOT])


def run(run_spec: spec.RunSpec, context: stage.StageContext) -> stage.StageResult:
    """Run the program in ``inputs["program"]`` with the tokenizer of ``inputs["snapshot"]``.

    Raises:
        InvalidInput: prompts do not fit the program, or the program not the device.
        DeviceLost, DeviceOutOfMemory, Infrastructure: see :class:`qeff_engine.sdk.session.Session`.
        Numerics: results are not finite, or wrong though no lossy format was asked for.
    """
    directory = context.inputs[stage.PROGRAM].absolute()
    compiled, model = program.load(directory), exported.load(directory)
    sdk = location.find(context.sdk_root)
    _require_same_kind(sdk, compiled=compiled)
    _require_queueable(run_spec, model=model, compile_spec=compiled.compile_spec)
    job = _Job(
        run_spec=run_spec,
        context=context,
        sdk=sdk,
        directory=directory,
        compiled=compiled,
        model=model,
        devices=_granted(context.devices, sdk=sdk, compile_spec=compiled.compile_spec, run_spec=run_spec),
        tokenizer=Tokenizer(context.inputs[stage.SNAPSHOT]),
    )
    _require_room(compiled, on=job.devices)
    answers, figures = _MEASURES[model.task](job)
    first = job.devices[0]
    figures |= {
        "qid": first.qid,
        "sku": first.sku,
        "num_cores": compiled.compile_spec.num_cores,
        "simulated": sdk.simulated,
    }
    measurement = {
        "prompts": list(run_spec.prompts),
        **answers,
        "metrics": figures,
        "devices": [dataclasses.asdict(device) for device in job.devices],
        "simulated": sdk.simulated,
    }
    (context.out / FILE_NAME).write_text(json.dumps(measurement, indent=1, ensure_ascii=False) + "\n")
    return stage.StageResult(figures=figures)


def _measure_decoder(job: _Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """Answers and figures of a generation from texts."""
    prompts = [job.tokenizer.encode(prompt) for prompt in job.run_spec.prompts]
    with job.session(exported.DECODER) as session, sensors.watch(job.devices) as watch:
        result = _generate(job, program=session, prompts=prompts)
    return _judged(job, prompts=prompts, result=result, watch=watch)


def _measure_vision_language(job: _Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """Answers and figures of a generation from texts with pictures."""
    prompts, batch_size = job.run_spec.prompts, job.compiled.compile_spec.batch_size
    if stage.IMAGES not in job.context.inputs:
        raise InvalidInput(
            f"A {job.model.class_name} needs pictures.", advice="Give a directory with one for each prompt (--images)."
        )
    paths = images.paths_of(job.context.inputs[stage.IMAGES], num_prompts=len(prompts))
    reader = images.Reader(job.context.inputs[stage.SNAPSHOT])
    readings = [reader.read(prompt, picture=path) for prompt, path in zip(prompts, paths, strict=True)]
    pixel_values_NCHW = images.pixels_of(readings)
    tokens = [reading.tokens for reading in readings]
    with job.session(exported.VISION) as session:
        seen = vision_language.see(session, pixel_values_NCHW=pixel_values_NCHW)
    with job.session(exported.DECODER) as session:
        decoder = vision_language.SeeingDecoder(session, embeds_NVD=seen.embeds_NVD, batch_size=batch_size)
        with sensors.watch(job.devices) as watch:
            result = _generate(job, program=decoder, prompts=tokens)
    answers, figures = _judged(job, prompts=tokens, result=result, watch=watch, pixel_values_NCHW=pixel_values_NCHW)
    # A user waits for the vision program too, which sees all pictures of a batch before.
    picture_s = seen.total_s / len(prompts)
    figures |= {
        "vision_s": _rounded(picture_s),
        "ttft_s": _rounded(figures["ttft_s"] + picture_s * min(batch_size, len(prompts))),
        "total_s": _rounded(figures["total_s"] + seen.total_s),
        "total_tok_s": _rounded(figures["num_generated_tokens"] / (figures["total_s"] + seen.total_s)),
    }
    return answers, figures


def _generate(job: _Job, *, program: generation.DecoderProgram, prompts: list[list[int]]) -> generation.Generation:
    """What a program that is active answers to prompts of token ids."""
    compile_spec = job.compiled.compile_spec
    shape = generation.DecoderShape(
        batch_size=compile_spec.batch_size, prefill_len=compile_spec.prefill_len, ctx_len=compile_spec.ctx_len
    )
    job.context.emit(events.progress(f"running {len(prompts)} prompt(s) on device {job.devices[0].qid}"))
    return generation.generate(
        program,
        prompts=prompts,
        shape=shape,
        eos_token_ids=job.model.eos_token_ids,
        generation_len=job.run_spec.generation_len,
        on_token=_teller(job.context),
    )


def _judged(
    job: _Job,
    *,
    prompts: list[list[int]],
    result: generation.Generation,
    watch: sensors.Watch,
    pixel_values_NCHW: Array | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Answers and figures of a generation, compared with the original; the device is free again by now."""
    found = parity.Parity(note="Not asked for.")
    if job.run_spec.check_parity:
        job.context.emit(events.progress("comparing with the original model"))
        found = parity.compare_tokens(
            job.original, prompts=prompts, generated=result.tokens, pixel_values_NCHW=pixel_values_NCHW
        )
        if job.exact:
            found.require_exact()
    timings = result.timings
    num_generated = sum(map(len, result.tokens))
    figures = {
        "ttft_s": _rounded(statistics.fmean(timings.ttft_s)),
        "decode_tok_s": _rounded(timings.decode_tok_s),
        "total_tok_s": _rounded(timings.total_tok_s),
        "total_s": _rounded(timings.total_s),
        "num_prompt_tokens": sum(map(len, prompts)),
        "num_generated_tokens": num_generated,
        "tokens_equal": found.tokens_equal,
        "num_tokens_equal": found.num_tokens_equal,
        "parity_note": found.note,
        **watch.figures(seconds=timings.total_s, count=num_generated),
    }
    answers = {
        "prompt_tokens": prompts,
        "tokens": result.tokens,
        "texts": [job.tokenizer.decode(tokens) for tokens in result.tokens],
        "token_times_s": [[_rounded(time_s) for time_s in times] for times in timings.token_times_s],
        "parity": dataclasses.asdict(found),
    }
    return answers, figures


def _measure_encoder(job: _Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """Answers and figures of embeddings."""
    compile_spec = job.compiled.compile_spec
    texts = [job.tokenizer.encode(text) for text in job.run_spec.prompts]
    input_ids_NS, attention_mask_NS = embedding.padded(texts, seq_len=compile_spec.seq_len)
    output = next(iter(job.model.components[exported.ENCODER].outputs))
    job.context.emit(events.progress(f"embedding {len(texts)} text(s) on device {job.devices[0].qid}"))
    with job.session(exported.ENCODER) as session, sensors.watch(job.devices) as watch:
        result = embedding.embed(
            session,
            input_ids_NS=input_ids_NS,
            attention_mask_NS=attention_mask_NS,
            batch_size=compile_spec.batch_size,
            output=output,
        )
    np.save(job.context.out / EMBEDDINGS_NAME, result.values)
    found = parity.Parity(note="Not asked for.")
    if job.run_spec.check_parity:
        job.context.emit(events.progress("comparing with the original model"))
        found = parity.compare_embeddings(
            job.original,
            embeddings=result.values,
            input_ids_NS=input_ids_NS,
            attention_mask_NS=attention_mask_NS,
            pooling=str(job.model.extra.get("pooling", "")),
        )
    if job.exact:
        found.require_exact()
    equal = None if found.max_abs_diff is None else found.max_abs_diff <= EMBEDDING_BOUND
    figures = {
        "latency_s": _rounded(result.latency_s),
        "embeddings_s": _rounded(result.embeddings_s),
        "total_s": _rounded(result.total_s),
        "num_prompt_tokens": sum(map(len, texts)),
        "embeddings_equal": equal,
        "max_abs_diff": found.max_abs_diff,
        "parity_note": found.note,
        **watch.figures(seconds=result.total_s, count=len(texts), what="text"),
    }
    if job.run_spec.queued:
        figures |= _queued_figures(job, input_ids_NS=input_ids_NS, attention_mask_NS=attention_mask_NS, output=output)
    return {"prompt_tokens": texts, "parity": dataclasses.asdict(found)}, figures


def _queued_figures(job: _Job, *, input_ids_NS: Array, attention_mask_NS: Array, output: str) -> dict[str, Any]:
    """The pace with full queues, by the SDK's runner if it has one: samples per second, and how long a call takes."""
    set_size, activations = job.run_spec.set_size or spec.DEFAULT_SET_SIZE, job.run_spec.activations or 1
    batch_size = job.compiled.compile_spec.batch_size
    asked: dict[str, Any] = {
        "program": job.program_of(exported.ENCODER),
        "qid": job.devices[0].qid,
        "set_size": set_size,
        "activations": activations,
    }
    job.context.emit(events.progress(f"measuring {activations} activation(s) with {set_size} call(s) queued on each"))
    energy: dict[str, Any] = {}
    if job.sdk.runner is not None:
        # When it loads and when it runs cannot be told from outside, so that no power is measured.
        pace = runner.measure(job.sdk.runner, **asked)
    else:
        batches = list(embedding.batches(input_ids_NS, attention_mask_NS, batch_size=batch_size))
        with QueuedSession(job.sdk, **asked) as session, sensors.watch(job.devices) as watch:
            pace = session.pace(batches, outputs=(output,))
        energy = watch.figures(seconds=pace.total_s, count=pace.num_calls * batch_size, what="text")
    inferences_s = None if pace.calls_s is None else pace.calls_s * batch_size
    return {
        "set_size": set_size,
        "activations": activations,
        "measured_with": "qaicrt" if job.sdk.runner is None else job.sdk.runner.name,
        "inferences_s": _rounded(inferences_s),
        "queued_latency_s": _rounded(pace.latency_s),
        **energy,
    }


_MEASURES: Mapping[str, Callable[[_Job], tuple[dict[str, Any], dict[str, Any]]]] = {
    "text-generation": _measure_decoder,
    "feature-extraction": _measure_encoder,
    "image-text-to-text": _measure_vision_language,
}


def _granted(
    grants: tuple[stage.DeviceGrant, ...],
    *,
    sdk: location.Sdk,
    compile_spec: spec.CompileSpec,
    run_spec: spec.RunSpec,
) -> tuple[devices.Device, ...]:
    """The devices to run on: those that were granted, else free ones."""
    known = {device.qid: device for device in devices.discover(sdk)}
    num_cores = compile_spec.num_cores * (run_spec.activations or 1)
    at_once = f" and shall run {run_spec.activations} times at once" if run_spec.activations else ""
    if not grants:
        return devices.pick(known.values(), num_cores=num_cores, num_devices=compile_spec.num_devices)
    if len(grants) != compile_spec.num_devices:
        raise InvalidInput(f"The program spans {compile_spec.num_devices} device(s), {len(grants)} were granted.")
    found = []
    for grant in grants:
        device = known.get(grant.qid)
        if device is None or not device.ready:
            status = f"is {device.status}" if device else "does not exist"
            raise DeviceLost(f"Device {grant.qid} {status}, expected a ready one.", advice="See `qaic-util -q`.")
        if device.nsp_total < num_cores:
            raise InvalidInput(
                f"The program was compiled for {compile_spec.num_cores} cores{at_once}; device {device.qid} "
                f"({device.sku}) has {device.nsp_total}.",
                advice="Compile for fewer cores, run fewer activations, or run on another device.",
            )
        found.append(device)
    return tuple(found)


def _require_room(compiled: program.Program, *, on: tuple[devices.Device, ...]) -> None:
    """Refuse to activate what does not fit at this moment, with words that the runtime does not have."""
    asked = compiled.compile_spec
    dram_bytes = compiled.figures.get("dram_bytes") or compiled.figures.get("program_bytes") or 0
    for device in on:
        devices.require_room(device, num_cores=asked.num_cores, dram_bytes=dram_bytes // asked.num_devices)


def _require_same_kind(sdk: location.Sdk, *, compiled: program.Program) -> None:
    """Refuse a simulated program on a real card and the other way round."""
    words = {True: "a simulated", False: "a real"}
    if sdk.simulated != compiled.simulated:
        raise InvalidInput(
            f"The program was made by {words[compiled.simulated]} SDK, and the one at {sdk.root} is "
            f"{words[sdk.simulated]} one.",
            advice="Compile again with this SDK.",
        )


def _require_queueable(
    run_spec: spec.RunSpec, *, model: exported.ExportedModel, compile_spec: spec.CompileSpec
) -> None:
    """Refuse queues for what they cannot be measured of."""
    if run_spec.queued and (model.task != "feature-extraction" or compile_spec.num_devices > 1):
        raise InvalidInput(
            f"Set size and activations are for encoders on one device; this is {model.task} on "
            f"{compile_spec.num_devices} device(s).",
            advice="Leave out --set-size and --activations.",
        )


def _teller(context: stage.StageContext) -> generation.OnToken:
    """A listener to tokens that passes them on, and reports now and then how many there are."""
    count = 0

    def on_token(number: int, token: int) -> None:
        nonlocal count
        count += 1
        if count % _TOKENS_BETWEEN_EVENTS == 0:
            context.emit(events.progress(f"{count} tokens generated"))
        if context.on_token is not None:
            context.on_token(number, token)

    return on_token


def _rounded(value: float | None) -> float | None:
    """Nanoseconds and less are noise."""
    return None if value is None else round(value, 9)
