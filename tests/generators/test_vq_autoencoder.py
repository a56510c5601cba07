"""What a VQ autoencoder refuses, and one that only reads."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from mmjax.config import ConfigError
from mmjax.generators.vq_autoencoder import VQAutoencoder, VQAutoencoderConfig

CONFIG = VQAutoencoderConfig(codes=5, latent_channels=3, widths=(2, 4), blocks=1, groups=2)


def shapes(config, given, method="create"):
    module = VQAutoencoder(config)
    return jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), given, method=method))


def test_without_a_decoder_there_are_no_params_of_one():
    values, variables = shapes(dataclasses.replace(CONFIG, decodes=False), jnp.zeros((1, 4, 6, 3)))
    assert set(variables["params"]) == {"encoder", "to_codes", "quantizer", "from_codes"}
    assert values.shape == (1, 2, 3, 3)
    with pytest.raises(ValueError, match="no decoder"):
        shapes(dataclasses.replace(CONFIG, decodes=False), jnp.zeros((1, 2, 3), jnp.int32), "decode")


def test_what_does_not_fit_is_named():
    for given, method, message in (
        (jnp.zeros((1, 5, 4, 3)), "encode", "5 x 4 pixels; sides must be multiples of 2"),
        (jnp.zeros((1, 5), jnp.int32), "decode", r"codes are \(1, 5\); wanted \[B, h, w\]"),
        (jnp.zeros((1, 5, 4, 2)), "decode", r"latents are \(1, 5, 4, 2\); wanted \[B, h, w, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            shapes(CONFIG, given, method)
    for changes, message in (
        ({"codes": 0}, "codes 0, latent_channels 3"),
        ({"attention_levels": (2,)}, "attention_levels: 2 is none of the 2 levels"),
        ({"widths": (3,)}, "vq_autoencoder.widths: 3 is not a multiple of groups 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(CONFIG, **changes)
