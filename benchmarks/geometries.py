"""What known networks do in one call, made from their published geometry alone, for comparison with published rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from qeff_engine.simulated_sdk import operations
from qeff_engine.simulated_sdk.operations import Operation, Work

_KV_BITS = {"fp16": 16, "mxint8": 8.25}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
    """A dense decoder.

    Attributes:
        layers, hidden, heads, kv_heads, head_dim, ffn, vocabulary: sizes.
        gated: the feed-forward part has three matrices, not two.
        activation: its function is a transcendental one (``False`` for ReLU).
        norms: normalizations of a layer.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    gated: bool = True
    activation: bool = True
    norms: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """A BERT.

    Attributes:
        layers, hidden, heads, ffn: sizes.
        vocabulary: of a head that predicts words; 0 for other heads, which cost nothing.
    """

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocabulary: int = 0


def _decoders(sizes: str, **traits: bool | int) -> dict[str, Decoder]:
    """Decoders from lines of their sizes, in the order of the fields."""
    found = {}
    for line in sizes.split("\n"):
        name, *numbers = line.split()
        layers, hidden, heads, kv_heads, head_dim, ffn, vocabulary = map(int, numbers)
        found[name] = Decoder(
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=ffn,
            vocabulary=vocabulary,
            **traits,
        )
    return found


DECODERS = {
    **_decoders(
        """llama-2-7b 32 4096 32 32 128 11008 32000
xgen-7b 32 4096 32 32 128 11008 51200
deepseek-7b 30 4096 32 32 128 11008 102400
llama-3.1-8b 32 4096 32 8 128 14336 128256
llama-3.3-70b 80 8192 64 8 128 28672 128256
granite-3.2-8b 40 4096 32 8 128 12800 49155
qwen2-7b 28 3584 28 4 128 18944 152064
qwen2-32b 64 5120 40 8 128 27648 152064
tinyllama-1.1b 22 2048 32 4 64 5632 32000
smollm2-135m 30 576 9 3 64 1536 49152"""
    ),
    **_decoders(
        """opt-2.7b 32 2560 32 32 80 10240 50272
opt-6.7b 32 4096 32 32 128 16384 50272
opt-13b 40 5120 40 40 128 20480 50272""",
        gated=False,
        activation=False,
    ),
    **_decoders("gpt2 12 768 12 12 64 3072 50257", gated=False),
    **_decoders("gpt-j-6b 28 4096 16 16 256 16384 50400", gated=False, norms=1),
    **_decoders("gemma-3-27b 62 5376 32 16 128 21504 262208", norms=6),
}
ENCODERS = {
    "bert-base": Encoder(layers=12, hidden=768, heads=12, ffn=3072),
    "bert-large": Encoder(layers=24, hidden=1024, heads=16, ffn=4096),
    "distilbert": Encoder(layers=6, hidden=768, heads=12, ffn=3072),
    "minilm-l12": Encoder(layers=12, hidden=384, heads=12, ffn=1536),
    "minilm-l6": Encoder(layers=6, hidden=384, heads=12, ffn=1536),
    "electra-small": Encoder(layers=12, hidden=256, heads=4, ffn=1024),
    "bert-mini": Encoder(layers=4, hidden=256, heads=4, ffn=1024),
    "bert-tiny": Encoder(layers=2, hidden=128, heads=2, ffn=512),
    **{
        f"{name}-mlm": Encoder(layers=layers, hidden=hidden, heads=hidden // 64, ffn=4 * hidden, vocabulary=vocabulary)
        for name, layers, hidden, vocabulary in (
            ("bert-base-uncased", 12, 768, 30522),
            ("bert-base-cased", 12, 768, 28996),
            ("bert-base-chinese", 12, 768, 21128),
            ("bert-base-multilingual-uncased", 12, 768, 105879),
            ("bert-base-multilingual-cased", 12, 768, 119547),
            ("roberta-base", 12, 768, 50265),
            ("bert-large-uncased", 24, 1024, 30522),
        )
    },
}


def decoder_work(
    shape: Decoder, *, batch: int, tokens: int, ctx_len: int, precision: str = "fp16", kv: str = "fp16"
) -> Work:
    """A call on ``batch`` sequences of ``tokens`` tokens each, beside a context of ``ctx_len``; logits of the last."""
    made = operations.merged(_decoder(shape, batch=batch, tokens=tokens, ctx_len=ctx_len, precision=precision, kv=kv))
    return Work(
        operations=made,
        reductions=2 * shape.layers,
        reduction_bytes=2 * batch * tokens * shape.hidden,
        io_bytes=batch * (16 * tokens + 4 * shape.vocabulary),
    )


def _decoder(shape: Decoder, *, batch: int, tokens: int, ctx_len: int, precision: str, kv: str) -> Iterator[Operation]:
    rows, q_width, kv_width = batch * tokens, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def weight(inner: int, columns: int, *, of: int = rows) -> Operation:
        return operations.matmul(rows=of, inner=inner, columns=columns, samples=batch, precision=precision)

    def products(inner: int, columns: int) -> Operation:
        return operations.product(
            matrices=batch * shape.heads, rows=tokens, inner=inner, columns=columns, samples=batch
        )

    norm = operations.vector("normalization", samples=batch, elements=rows * shape.hidden)
    for _ in range(shape.layers):
        yield from [norm] * shape.norms
        yield from (weight(shape.hidden, q_width), weight(shape.hidden, kv_width), weight(shape.hidden, kv_width))
        yield products(shape.head_dim, ctx_len)
        yield operations.vector("softmax", samples=batch, elements=rows * shape.heads * ctx_len)
        yield products(ctx_len, shape.head_dim)
        yield weight(q_width, shape.hidden)
        yield from [weight(shape.hidden, shape.ffn)] * (2 if shape.gated else 1)
        if shape.activation:
            yield operations.vector("activation", samples=batch, elements=rows * shape.ffn)
        yield weight(shape.ffn, shape.hidden)
        state_bytes = round(batch * kv_width * ctx_len * _KV_BITS[kv] / 8)
        yield from [operations.states(num_bytes=state_bytes, samples=batch)] * 2
    yield norm
    yield weight(shape.hidden, shape.vocabulary, of=batch)


def encoder_work(shape: Encoder, *, batch: int, tokens: int, precision: str = "fp16") -> Work:
    """A call on ``batch`` texts of ``tokens`` tokens each; the vector unit computes in fp16 also beside INT8."""
    made = operations.merged(_encoder(shape, batch=batch, tokens=tokens, precision=precision))
    # Ids, masks and types go in; a figure for each token, or for each word of the vocabulary, comes out.
    return Work(operations=made, io_bytes=batch * tokens * (24 + 4 * max(shape.vocabulary, 2)))


def _encoder(shape: Encoder, *, batch: int, tokens: int, precision: str) -> Iterator[Operation]:
    rows, head_dim = batch * tokens, shape.hidden // shape.heads

    def weight(inner: int, columns: int) -> Operation:
        return operations.matmul(rows=rows, inner=inner, columns=columns, samples=batch, precision=precision)

    def products(inner: int, columns: int) -> Operation:
        return operations.product(
            matrices=batch * shape.heads,
            rows=tokens,
            inner=inner,
            columns=columns,
            samples=batch,
            precision=precision,
        )

    norm = operations.vector("normalization", samples=batch, elements=rows * shape.hidden)
    yield norm
    for _ in range(shape.layers):
        yield from [weight(shape.hidden, shape.hidden)] * 3
        yield products(head_dim, tokens)
        yield operations.vector("softmax", samples=batch, elements=rows * shape.heads * tokens)
        yield products(tokens, head_dim)
        yield weight(shape.hidden, shape.hidden)
        yield norm
        yield weight(shape.hidden, shape.ffn)
        yield operations.vector("activation", samples=batch, elements=rows * shape.ffn)
        yield weight(shape.ffn, shape.hidden)
        yield norm
    if shape.vocabulary:
        yield weight(shape.hidden, shape.hidden)
        yield operations.vector("activation", samples=batch, elements=rows * shape.hidden)
        yield norm
        yield weight(shape.hidden, shape.vocabulary)


# Patches of a side, of 224 x 224 images, by a transformer with the sizes of BERT base.
VISION = {"vit-b-16": 16, "vit-b-32": 32}


def vision_work(patch: int, *, batch: int) -> Work:
    """A call on ``batch`` FP32 images of 224 x 224 in patches of ``patch`` x ``patch``."""
    shape, side = ENCODERS["bert-base"], 224 // patch
    patches = operations.conv(
        samples=batch,
        in_channels=3,
        out_channels=shape.hidden,
        kernel=patch * patch,
        in_pixels=224 * 224,
        out_pixels=side * side,
    )
    layers = _encoder(shape, batch=batch, tokens=side * side + 1, precision="fp16")
    return Work(operations=operations.merged([patches, *layers]), io_bytes=batch * 4 * (3 * 224 * 224 + 1000))
