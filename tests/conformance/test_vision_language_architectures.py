"""One path for all vision-language models of the common shape, and a clear word for those without it."""

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from qeff_engine import exported, pipeline, spec, stage
from qeff_engine.architectures import proven
from qeff_engine.errors import Unsupported

IMAGE_TOKEN = 3
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}


def internvl():
    return transformers.InternVLConfig(
        vision_config={**VISION, "image_size": [16, 16], "patch_size": [4, 4]},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=IMAGE_TOKEN,
        downsample_ratio=0.5,
    )


def cohere2_vision():
    return transformers.Cohere2VisionConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION},
        text_config={"model_type": "cohere2", **TEXT, **WINDOW},
        image_token_id=IMAGE_TOKEN,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )


def gemma3():
    return transformers.Gemma3Config(
        vision_config=VISION,
        text_config={**TEXT, **WINDOW, "query_pre_attn_scalar": 8},
        mm_tokens_per_image=4,
        image_token_index=IMAGE_TOKEN,
    )


def llava_next():
    return transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=[[16, 16]],
    )


def idefics3():
    return transformers.Idefics3Config(
        vision_config=VISION, text_config={"model_type": "llama", **TEXT}, image_token_id=IMAGE_TOKEN, scale_factor=2
    )


def saved(config, directory):
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.save_pretrained(directory)
    return model


def export(directory):
    for name in ("out", "work"):
        (directory / name).mkdir()
    inputs = {stage.SNAPSHOT: directory / "snapshot"}
    context = stage.StageContext(out=directory / "out", work=directory / "work", inputs=inputs)
    pipeline.run_stage(spec.ExportSpec(), context=context)
    return exported.load(directory / "out")


@pytest.mark.parametrize("config", [internvl, cohere2_vision])
def test_a_picture_and_a_text_give_the_original_logits(config, tmp_path):
    original = saved(config(), tmp_path / "snapshot")
    components = export(tmp_path).components
    vision, language = (
        onnxruntime.InferenceSession(tmp_path / "out" / components[name].file) for name in ("vision", "decoder")
    )
    shape = components["vision"].inputs["pixel_values"].shape
    pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (embeds,) = vision.run(None, {"pixel_values": pixels})
    ids = [7, 8, *[IMAGE_TOKEN] * embeds.shape[1], 9, 10]
    sizes = {"batch_size": 1, "ctx_len": 24}
    feeds = {
        name: np.zeros([sizes.get(axis, axis) for axis in tensor.shape], np.float32)
        for name, tensor in components["decoder"].inputs.items()
        if name.startswith("past_")
    }
    feeds |= {"input_ids": np.array([ids]), "position_ids": np.arange(len(ids))[None]}
    feeds |= {"vision_embeds": embeds, "image_idx": np.zeros((1, 1), np.int64)}
    (found,) = language.run(["logits"], feeds)
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        expected = original(
            input_ids=tokens, pixel_values=torch.from_numpy(pixels), attention_mask=torch.ones_like(tokens)
        ).logits
    np.testing.assert_allclose(found[0, 0], expected[0, -1].numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (gemma3, "takes token_type_ids"),
        (llava_next, "needs pixel_values, image_sizes"),
        (idefics3, "does not take one picture"),
    ],
)
def test_a_model_without_the_common_shape_is_refused_with_the_reason(config, reason, tmp_path):
    saved(config(), tmp_path / "snapshot")
    with pytest.raises(Unsupported, match=reason):
        export(tmp_path)


def test_a_decoder_that_nobody_has_compared_is_refused(tmp_path, monkeypatch):
    saved(internvl(), tmp_path / "snapshot")
    monkeypatch.setattr(proven, "is_proven", lambda model_type: model_type not in ("qwen2", "internvl"))
    with pytest.raises(Unsupported, match="decoder 'qwen2' of InternVLForConditionalGeneration is not among"):
        export(tmp_path)
