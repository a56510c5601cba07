"""Idefics2, Idefics3 and SmolVLM against transformers: images of any shape, and tiles, padded with images of zeros."""

import numpy as np
import pytest
import transformers

from mmjax.interop.huggingface import FAMILIES

VISION = dict(hidden_size=30, intermediate_size=44, num_hidden_layers=2, num_attention_heads=5, patch_size=7)
TEXT = dict(
    vocab_size=83,
    hidden_size=36,
    intermediate_size=58,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
)
IMAGE = 80


def padded(rows, side):
    """pixel_values [B, most images, 3, side, side] and their mask; each image is (height, width)."""
    rng, most = np.random.default_rng(1), max(map(len, rows))
    pixels = np.zeros((len(rows), most, 3, side, side), np.float32)
    mask = np.zeros((len(rows), most, side, side), np.int64)
    for row, images in enumerate(rows):
        for image, (height, width) in enumerate(images):
            pixels[row, image, :, :height, :width] = rng.normal(size=(3, height, width))
            mask[row, image, :height, :width] = 1
    return pixels, mask


def test_idefics2(system, padded_rows):
    """Grids of 5 x 3, 2 x 5 and 4 x 4 patches read positions of 5 x 5; a rest of pixels is left out."""
    reference = transformers.Idefics2ForConditionalGeneration(
        transformers.Idefics2Config(
            vision_config=dict(VISION, image_size=35),
            text_config=dict(TEXT, model_type="mistral"),
            perceiver_config=dict(
                hidden_size=36,
                resampler_n_latents=3,
                resampler_depth=2,
                resampler_n_heads=4,
                num_key_value_heads=2,
                resampler_head_dim=6,
            ),
            image_token_id=IMAGE,
        )
    )
    ids, mask = padded_rows([[(IMAGE, 3)], [(IMAGE, 3), (IMAGE, 3)], []])
    pixels, seen = padded([[(35, 24)], [(14, 35), (28, 28)], []], 35)
    inputs = dict(input_ids=ids, attention_mask=mask, pixel_values=pixels, pixel_attention_mask=seen)
    model = system.check(reference, inputs)
    seen[0, 0, 3, 3] = 0
    with pytest.raises(ValueError, match="pixel_attention_mask of image 0 is no rectangle at the top left"):
        model.batch(**inputs)


@pytest.mark.parametrize("kind", ["Idefics3", "SmolVLM"])
def test_tiles(system, padded_rows, kind):
    """Tiles of 6 x 6 patches, squares of 3 x 3 joined: four tokens each."""
    config = getattr(transformers, f"{kind}Config")(
        vision_config=dict(VISION, image_size=42),
        text_config=dict(TEXT, model_type="llama"),
        image_token_id=IMAGE,
        scale_factor=3,
        tie_word_embeddings=kind == "SmolVLM",
    )
    reference = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    ids, mask = padded_rows([[(IMAGE, 4), (IMAGE, 4), (IMAGE, 4)], [(IMAGE, 4)]])
    pixels, seen = padded([[(42, 42)] * 3, [(42, 42)]], 42)
    inputs = dict(input_ids=ids, attention_mask=mask, pixel_values=pixels, pixel_attention_mask=seen)
    if kind == "SmolVLM":  # the other family is then told apart by the config.json that came with the weights
        model = system.check(reference, inputs)
        assert model.hf_config["model_type"] == "smolvlm"
        return
    model = system.check(reference, inputs)
    seen[1, 0, 35:] = 0
    with pytest.raises(ValueError, match="image 3 is of 35 x 42 pixels, the encoder takes tiles of 42 x 42"):
        model.batch(**inputs)


def test_resampler_of_a_config_that_does_not_say_its_width():
    """Files of the hub leave it to the LLM's config, with its epsilon."""
    hf = transformers.Idefics2Config(
        vision_config=dict(VISION, image_size=35), text_config=dict(TEXT, model_type="mistral", rms_norm_eps=1e-3)
    ).to_dict()
    hf["perceiver_config"] = {"model_type": "idefics2", "resampler_n_latents": 5}
    projector = FAMILIES["idefics2"].config_from_hf(hf).projectors["image"]
    assert (projector.num_latents, projector.latent_width, projector.norm_eps) == (5, 36, 1e-3)
    assert (projector.input_hidden, projector.mlp_width, projector.num_layers) == (58, 144, 3)
