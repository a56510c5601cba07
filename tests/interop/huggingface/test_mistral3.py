"""Mistral3 against transformers: Pixtral's rotary tower on images of any shape, squares of features joined."""

import numpy as np
import pytest
import transformers

from mmjax.config import ConfigError
from mmjax.interop.huggingface import FAMILIES

IMAGE, BREAK = 80, 79


def model():
    return transformers.Mistral3ForConditionalGeneration(
        transformers.Mistral3Config(
            vision_config=dict(
                model_type="pixtral",
                hidden_size=40,
                intermediate_size=44,
                num_hidden_layers=2,
                num_attention_heads=5,
                patch_size=5,
                image_size=60,
                hidden_act="silu",
                rope_parameters={"rope_type": "axial", "rope_theta": 1000.0},
            ),
            text_config=dict(
                model_type="mistral",
                vocab_size=83,
                hidden_size=36,
                intermediate_size=58,
                num_hidden_layers=2,
                num_attention_heads=6,
                num_key_value_heads=2,
                head_dim=8,
                max_position_embeddings=256,
                rms_norm_eps=1e-3,
                sliding_window=None,
                tie_word_embeddings=False,
            ),
            image_token_index=IMAGE,
            spatial_merge_size=2,
            tie_word_embeddings=False,
        )
    )


def test_mistral3(system, padded_rows):
    """Images of 4 x 6, 2 x 4 and 6 x 2 patches; rows of an image end in a token of text."""
    sizes = np.array([(20, 30), (10, 20), (30, 10)])
    images = [[(IMAGE, width // 10), (BREAK, 1)] * (height // 10) for height, width in sizes]
    ids, mask = padded_rows([images[0] + images[1], images[2], []])
    rng = np.random.default_rng(1)
    pixels = np.zeros((3, 3, 30, 30), np.float32)
    for image, (height, width) in enumerate(sizes):
        pixels[image, :, :height, :width] = rng.normal(size=(3, height, width))
    inputs = dict(input_ids=ids, attention_mask=mask, pixel_values=pixels, image_sizes=sizes)
    loaded = system.check(model(), inputs)
    with pytest.raises(ValueError, match=r"image_sizes \[I, 2\]"):
        loaded.batch(input_ids=ids, attention_mask=mask, pixel_values=pixels)


def test_features_of_several_layers_are_refused():
    hf = model().config.to_dict()
    with pytest.raises(ConfigError, match=r"vision_feature_layer \[-1, -2\] is not supported"):
        FAMILIES["mistral3"].config_from_hf({**hf, "vision_feature_layer": [-1, -2]})
