"""DeepStack against a loop over layers, in both forms of blocks, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import Decoder, DecoderConfig
from mmjax.backbones.fusion.deepstack import DeepStackConfig
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.infer.cache import unstack
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.nn.block import Block
from mmjax.nn.rotary import rotation

PLAIN = DecoderConfig(13, 12, 3, 3, 1, 4, 10)
CONFIG = dataclasses.replace(PLAIN, fusion=DeepStackConfig(2))
POSITIONS = np.tile(np.arange(5, dtype=np.int32), (2, 1))
MASK = np.broadcast_to(np.tril(np.ones((5, 5), bool)), (2, 5, 5))


@pytest.fixture(scope="module")
def params():
    return jax.jit(MultimodalLM(MultimodalLMConfig(CONFIG)).init)(jax.random.key(0))["backbone"]


def hidden(config, params, embeddings):
    run = jax.jit(lambda params, *given: Decoder(config).apply({"params": params}, *given)[0])
    return run(params, embeddings, POSITIONS, MASK)


@pytest.mark.slow
def test_equals_a_loop_over_layers(params):
    assert from_dict(DecoderConfig, to_dict(CONFIG)) == CONFIG
    embeddings = np.random.default_rng(0).normal(size=(2, 5, 36)).astype(np.float32)
    embeddings[:, 3:, 12:] = 0  # text behind the media

    def loop(params, x):
        angles = rotation(jnp.asarray(POSITIONS), 4, PLAIN.rope_theta)
        x, added = x[..., :12], (x[..., 12:24], x[..., 24:], 0)
        for layer in range(3):
            weights = jax.tree.map(lambda leaf: leaf[layer], params["blocks"])  # noqa: B023
            x = Block(PLAIN.block).apply({"params": weights}, x, MASK, angles)[0] + added[layer]
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + PLAIN.norm_eps) * params["norm"]["scale"]

    wanted = jax.jit(loop)(params, embeddings)
    for tree in (params, unstack(params)):
        np.testing.assert_allclose(hidden(CONFIG, tree, embeddings), wanted, atol=1e-5)
    alone = hidden(CONFIG, params, embeddings[..., :12])
    np.testing.assert_array_equal(alone, hidden(PLAIN, params, embeddings[..., :12]))
    assert np.abs(np.asarray(alone) - wanted).max() > 0.1


def test_what_does_not_fit(params):
    for layers in (0, 4):
        with pytest.raises(ConfigError, match=f"fusion.layers {layers} must be from 1 to backbone.num_layers 3"):
            dataclasses.replace(PLAIN, fusion=DeepStackConfig(layers))
    with pytest.raises(ValueError, match="media tokens are 24 wide; fusion with 2 layers of width 12 takes 36"):
        hidden(CONFIG, params, np.zeros((2, 5, 24), np.float32))
