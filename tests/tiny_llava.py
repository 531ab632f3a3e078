"""A LLaVA-shaped model of a few thousand numbers with tokenizer and processor, from a seed."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

IMAGE_SIZE, PATCH_SIZE = 16, 8
NUM_ROWS = (IMAGE_SIZE // PATCH_SIZE) ** 2  # image tokens of a picture
WORDS = ["<unk>", "<s>", "</s>", "<image>", *(f"w{number}" for number in range(60))]
IMAGE_TOKEN = WORDS.index("<image>")


def save(directory: Path, *, seed: int = 0) -> LlavaForConditionalGeneration:
    """Write the checkpoint and return the model."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(_config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)  # the default makes logits too alike to tell tokens apart
    model.save_pretrained(directory)
    processor().save_pretrained(directory)
    return model


def picture(seed: int) -> Image.Image:
    """A picture of coloured noise, wider than high."""
    pixels = np.random.default_rng(seed).integers(0, 255, size=(20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def processor() -> LlavaProcessor:
    """Words and pictures to token ids and pixels."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            pad_token="</s>",
            extra_special_tokens={"image_token": "<image>"},
        ),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )


def _config() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=32,
    )
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(WORDS),
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=NUM_ROWS,
    )
