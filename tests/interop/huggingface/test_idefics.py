"""IDEFICS against transformers: images read inside the LLM, with and without a Perceiver."""

import dataclasses

import numpy as np
import pytest
import transformers

from mmjax.config import ConfigError
from mmjax.interop.huggingface import FAMILIES, family_of


def reference(**options):
    return transformers.IdeficsForVisionText2Text(
        transformers.IdeficsConfig(
            vocab_size=79,
            hidden_size=36,
            intermediate_size=58,
            num_attention_heads=6,
            max_position_embeddings=128,
            vision_config=dict(
                embed_dim=30,
                image_size=21,
                patch_size=7,
                num_hidden_layers=2,
                num_attention_heads=5,
                intermediate_size=44,
            ),
            **options,
        )
    )


RESAMPLED = dict(
    num_hidden_layers=2,
    additional_vocab_size=3,
    qk_layer_norms=True,
    use_resampler=True,
    perceiver_config=dict(
        resampler_n_latents=5,
        resampler_depth=2,
        resampler_n_heads=3,
        resampler_head_dim=7,
        qk_layer_norms_perceiver=True,
    ),
)
TIED = dict(
    num_hidden_layers=4, additional_vocab_size=2, cross_layer_interval=2, alpha_type="vector", tie_word_embeddings=True
)


def inputs(images, left=True):
    """Three rows, the second padded; first tokens see nothing, the others one image or two."""
    rng = np.random.default_rng(3)
    ids = rng.integers(1, 79, (3, 9))
    ids[:, 3] = ids[0, 6] = 80  # a token of the added rows
    mask = np.ones_like(ids)
    padded = slice(2) if left else slice(7, None)
    ids[1, padded], mask[1, padded] = 0, 0
    seen = np.zeros((3, 9, images), np.int64)
    seen[:, 3:, 0] = 1
    seen[0, 6:] = np.arange(images) == images - 1
    seen[2, 5:] = 1
    seen *= mask[..., None]
    pixels = rng.normal(size=(3, images, 3, 21, 21)).astype(np.float32)
    return dict(input_ids=ids, attention_mask=mask, pixel_values=pixels, image_attention_mask=seen)


def test_with_a_perceiver(whole_system):
    model = whole_system.check(reference(**RESAMPLED), inputs(2))
    assert {"embed_new", "lm_head_new", "fusion"} < set(model.params["backbone"])
    assert model.config.num_tokens("image") == 5
    # Which family a model is written as is found without its config.json too; none of the others can.
    assert family_of(model.config) is FAMILIES["idefics"]
    given = inputs(2)
    given["image_attention_mask"] = given["image_attention_mask"][:, :, :1]
    with pytest.raises(ValueError, match=r"image_attention_mask is \(3, 9, 1\); 3 rows of 9 tokens and 2 images"):
        model.batch(**given)
    with pytest.raises(ValueError, match=r"pixel_values must be \[B, I, ...\] with a row for each of the 3 rows"):
        model.batch(**{**given, "pixel_values": given["pixel_values"][:2]})
    wrong = dataclasses.replace(model.config.backbone, fusion=None)
    with pytest.raises(ConfigError, match="reads one image port inside"):
        FAMILIES["idefics"].config_to_hf(
            dataclasses.replace(model.config, backbone=wrong, encoders={}, projectors={}, inside=())
        )


def test_without_a_perceiver_tied_and_padded_on_the_right(system):
    model = system.check(reference(**TIED), inputs(1, left=False), new_tokens=0)
    assert "projectors" not in model.params and "lm_head" not in model.params["backbone"]
    assert model.config.num_tokens("image") == 10
