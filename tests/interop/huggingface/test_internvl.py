"""InternVL against transformers: InternViT, squares of features joined, two maps, LLMs of two families."""

import numpy as np
import pytest
import transformers

from mmjax.config import ConfigError
from mmjax.interop.huggingface import FAMILIES

VISION = dict(
    hidden_size=30, intermediate_size=44, num_hidden_layers=3, num_attention_heads=5, patch_size=7, image_size=42
)
TEXT = dict(
    vocab_size=83,
    hidden_size=36,
    intermediate_size=58,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
IMAGE = 80


def model(vision, **options):
    return transformers.InternVLForConditionalGeneration(
        transformers.InternVLConfig(vision_config=dict(VISION, **vision), image_token_id=IMAGE, **options)
    )


@pytest.mark.parametrize(
    "vision, options, count",
    [
        ({}, dict(text_config=dict(TEXT, model_type="qwen2", tie_word_embeddings=True)), 9),
        (
            dict(attention_bias=True, use_mean_pooling=False, use_mask_token=True, image_size=56),
            dict(
                text_config=dict(TEXT, model_type="llama"),
                tie_word_embeddings=False,
                downsample_ratio=0.25,
                projector_hidden_act="gelu_pytorch_tanh",
            ),
            4,
        ),
        pytest.param(
            dict(norm_type="rms_norm", use_qk_norm=True),
            dict(text_config=dict(TEXT, model_type="qwen2"), vision_feature_layer=-2),
            9,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_internvl(system, padded_rows, vision, options, count):
    """Grids of 6 x 6 and 8 x 8 features in squares of two and of four.

    A norm is behind the blocks of the second tower alone; the third has norms of queries and keys, as that of six
    billion parameters.
    """
    ids, mask = padded_rows([[(IMAGE, count), (IMAGE, count)], [], [(IMAGE, count)]])
    side = vision.get("image_size", 42)
    pixels = np.random.default_rng(1).normal(size=(3, 3, side, side)).astype(np.float32)
    loaded = system.check(model(vision, **options), dict(input_ids=ids, attention_mask=mask, pixel_values=pixels))
    assert loaded.config.num_tokens("image") == count


def test_refused():
    family, hf = FAMILIES["internvl"], model({}, text_config=dict(TEXT, model_type="qwen2")).config.to_dict()
    with pytest.raises(ConfigError, match=r"vision_feature_layer \[-1, -2\] is not supported"):
        family.config_from_hf({**hf, "vision_feature_layer": [-1, -2]})
    with pytest.raises(ConfigError, match="downsample_ratio 0.4 is not one over a whole number"):
        family.config_from_hf({**hf, "downsample_ratio": 0.4})
    vision = {**hf["vision_config"], "use_absolute_position_embeddings": False}
    with pytest.raises(ConfigError, match="use_absolute_position_embeddings False is not supported"):
        family.config_from_hf({**hf, "vision_config": vision})
