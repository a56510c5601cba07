"""LLaVA-NeXT-Video against transformers: images in tiles, and videos of any number of frames, each pooled."""

import numpy as np
import pytest
import transformers

from mmjax.config import ConfigError
from mmjax.interop.huggingface import FAMILIES

IMAGE, VIDEO = 80, 81


def model():
    return transformers.LlavaNextVideoForConditionalGeneration(
        transformers.LlavaNextVideoConfig(
            vision_config=transformers.CLIPVisionConfig(
                hidden_size=30,
                intermediate_size=44,
                num_hidden_layers=3,
                num_attention_heads=5,
                patch_size=7,
                image_size=35,
            ),
            text_config=transformers.LlamaConfig(
                vocab_size=83,
                hidden_size=36,
                intermediate_size=58,
                num_hidden_layers=2,
                num_attention_heads=6,
                num_key_value_heads=2,
                max_position_embeddings=512,
            ),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[35, 70], [70, 35]],
        )
    )


def test_images_and_videos(system, padded_rows):
    """A side of five features, of which pooling leaves out the last; two videos of three frames."""
    reference = model()
    config = FAMILIES["llava_next_video"].config_from_hf(reference.config.to_dict())
    frames, image = config.num_tokens("video", (3, 5, 5)), config.num_tokens("image", None, (40, 70))
    assert frames == 3 * 2 * 2
    ids, mask = padded_rows([[(VIDEO, frames)], [(VIDEO, frames), (IMAGE, image)]])
    rng = np.random.default_rng(1)
    inputs = dict(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=rng.normal(size=(1, 3, 3, 35, 35)).astype(np.float32),
        image_sizes=np.array([[40, 70]]),
        pixel_values_videos=rng.normal(size=(2, 3, 3, 35, 35)).astype(np.float32),
    )
    loaded = system.check(reference, inputs)
    assert set(loaded.params["encoders"]) == set(loaded.params["projectors"]) == {"image"}


def test_other_pooling_is_refused():
    hf = model().config.to_dict()
    for key, value in (("spatial_pool_mode", "max"), ("spatial_pool_stride", 3)):
        with pytest.raises(ConfigError, match=f"{key} {value!r} is not supported"):
            FAMILIES["llava_next_video"].config_from_hf({**hf, key: value})
