"""The VQ autoencoders of Janus and Chameleon against transformers: codes, images, and the way out and back."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers

from mmjax.config import ConfigError
from mmjax.generators.vq_autoencoder import VQAutoencoderConfig
from mmjax.interop.huggingface import load, model_of, save

JANUS = dict(
    base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1, embed_dim=5, num_embeddings=19, latent_channels=6,
    num_patches=4,
)  # fmt: skip
CHAMELEON = dict(
    base_channels=32, channel_multiplier=[1, 1, 2], num_res_blocks=1, embed_dim=4, num_embeddings=23, latent_channels=7,
    resolution=12, attn_resolutions=[12, 3],
)  # fmt: skip


def build(weights, kind, sizes):
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = weights.randomised(getattr(transformers, kind)(config))
    with torch.no_grad():
        # Where the latents are, so that several codes are used.
        model.quantize.embedding.weight.mul_(20)
    return model


def encoded(model, loaded, images):
    """Codes of both, [B, h, w]."""
    with torch.no_grad():
        theirs = model.encode(torch.tensor(images)).image_tokens.numpy()
    mine = np.asarray(jax.jit(model_of(loaded.config).encode)(loaded.params, images.transpose(0, 2, 3, 1)))
    np.testing.assert_array_equal(mine.ravel(), theirs.ravel())
    assert mine.dtype == np.int32 and len(np.unique(mine)) > 1
    return mine


def test_janus_codes_images_and_export(weights, parity):
    model = build(weights, "JanusVQVAE", JANUS)
    loaded = weights.loaded(model)
    assert loaded.config.image_size == 8 and loaded.config.attention_levels == (1,)
    assert encoded(model, loaded, weights.pixels(2, 3, 8, 8)).shape == (2, 4, 4)
    codes = np.random.default_rng(0).integers(0, 19, (2, 4, 4))
    images = jax.jit(model_of(loaded.config).decode)(loaded.params, codes)
    again = weights.again(loaded, type(model))
    with torch.no_grad():
        wanted = again.decode(torch.tensor(codes.reshape(2, 16)))
    parity.close(images, wanted.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("changes", [{}, {"attn_resolutions": None}])
def test_chameleon_codes_and_export(weights, changes):
    model = build(weights, "ChameleonVQVAE", CHAMELEON | changes)
    loaded = weights.loaded(model)
    assert loaded.config.attention_levels == (() if changes else (0, 2)) and not loaded.config.decodes
    assert encoded(model, loaded, weights.pixels(1, 3, 12, 20)).shape == (1, 3, 5)
    weights.again(loaded, type(model))


def test_what_is_not_supported_is_named(weights, tmp_path):
    for kind, sizes, changes, message in (
        ("JanusVQVAE", JANUS, {"channel_multiplier": [2, 2]}, r"channel_multiplier: \[2, 2\] must start with 1"),
        ("JanusVQVAE", JANUS, {"double_latent": True}, "double_latent"),
        ("JanusVQVAE", JANUS, {"out_channels": 4}, "out_channels 4 must be in_channels, 3"),
        ("ChameleonVQVAE", CHAMELEON, {"attn_type": "linear"}, "attn_type: 'linear'"),
    ):
        kind = {"JanusVQVAE": "janus_vqgan", "ChameleonVQVAE": "chameleon_vqgan"}[kind]
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **sizes, **changes}))
        with pytest.raises(ConfigError, match=message):
            load(tmp_path)
    janus = VQAutoencoderConfig(widths=(32, 64), attention_levels=(1,), unit_codes=True)
    for changes, message in (
        ({"unit_codes": False}, "unit_codes False"),
        ({"spatial_norm": True}, "no spatial_norm"),
        ({"groups": 16}, "groups 16"),
        ({"decodes": False, "middle_attention": False}, "attention_levels without middle_attention"),
    ):
        config = dataclasses.replace(janus, **changes)
        with pytest.raises(ConfigError, match=message):
            save(tmp_path, config, model_of(config).param_shapes())
