"""Video-LLaVA and ViP-LLaVA against transformers: two towers before one projector; features of several layers."""

import dataclasses

import numpy as np
import pytest
import transformers

from mmjax.config import ConfigError
from mmjax.interop.huggingface import FAMILIES

VISION = dict(hidden_size=30, intermediate_size=44, num_attention_heads=5, patch_size=7, image_size=23)
TEXT = dict(
    vocab_size=83,
    hidden_size=36,
    intermediate_size=58,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
IMAGE, VIDEO = 80, 81


def test_video_llava(system, padded_rows):
    """Images of nine features, and videos of two frames of ten: frames keep their class token."""
    reference = transformers.VideoLlavaForConditionalGeneration(
        transformers.VideoLlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**VISION, num_hidden_layers=3),
            text_config=transformers.LlamaConfig(**TEXT),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            video_seq_length=20,
        )
    )
    ids, mask = padded_rows([[(VIDEO, 20)], [(IMAGE, 9), (VIDEO, 20), (IMAGE, 9)], []])
    rng = np.random.default_rng(1)
    inputs = dict(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=rng.normal(size=(2, 3, 23, 23)).astype(np.float32),
        pixel_values_videos=rng.normal(size=(2, 2, 3, 23, 23)).astype(np.float32),
    )
    model = system.check(reference, inputs)
    assert set(model.params["encoders"]) == {"image", "video"} and set(model.params["projectors"]) == {"image"}
    # The processor's older name for images.
    inputs["pixel_values_images"] = inputs.pop("pixel_values")
    assert set(model.batch(**inputs).media) == {"image", "video"}
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"][:, :1]
    with pytest.raises(ValueError, match="1 frames a video, the encoder takes 2"):
        model.batch(**inputs)
    with pytest.raises(ConfigError, match="'video' cannot use the projector of 'audio'; ports with projectors are"):
        dataclasses.replace(model.config, shared_projectors={"video": "audio"})
    with pytest.raises(ConfigError, match="video_seq_length 21 is no whole number of frames of 10 features"):
        FAMILIES["video_llava"].config_from_hf({**reference.config.to_dict(), "video_seq_length": 21})


def test_vipllava(system, padded_rows):
    reference = transformers.VipLlavaForConditionalGeneration(
        transformers.VipLlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**VISION, num_hidden_layers=4),
            text_config=transformers.LlamaConfig(**TEXT),
            image_token_index=IMAGE,
            vision_feature_layer=[-2, -4, 2],
            projector_layernorm_eps=1e-3,
        )
    )
    ids, mask = padded_rows([[(IMAGE, 9)], [(IMAGE, 9), (IMAGE, 9)]])
    pixels = np.random.default_rng(1).normal(size=(3, 3, 23, 23)).astype(np.float32)
    model = system.check(reference, dict(input_ids=ids, attention_mask=mask, pixel_values=pixels))
    assert model.config.encoders["image"].feature_layers == (-2, -4, 2)
