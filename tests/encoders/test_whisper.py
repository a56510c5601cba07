"""What transformers' class does not say of Whisper's encoder: fresh positions, items in rows, gradients, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers.models.whisper.modeling_whisper import sinusoids

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.dual import Tower
from mmjax.encoders.whisper import WhisperEncoder, WhisperEncoderConfig, sine_positions, windows_of
from mmjax.paths import flatten

CONFIG = WhisperEncoderConfig(num_mels=5, max_positions=6, width=12, num_layers=2, num_heads=3, mlp_width=10)


@pytest.fixture(scope="module")
def params():
    return jax.jit(Tower(CONFIG).init)(jax.random.key(0))


def test_fresh_positions_are_those_of_the_paper(params):
    assert CONFIG.item_shape == (12, 5) and CONFIG.num_tokens() == 6 and CONFIG.feature_width == 12
    np.testing.assert_array_equal(params["position_embedding"], sine_positions(6, 12))
    for length, width in ((6, 12), (40, 6)):
        np.testing.assert_allclose(sine_positions(length, width), sinusoids(length, width), atol=3e-6)
    assert set(params["blocks"]["attn"]["k"]) == {"kernel"} and set(params["blocks"]["attn"]["q"]) == {"kernel", "bias"}


def test_windows_hold_each_place_between_its_neighbours():
    x = jnp.arange(1.0, 8.0).reshape(1, 7, 1)
    assert windows_of(x, 1)[0, :, :, 0].tolist()[:2] == [[0, 1, 2], [1, 2, 3]]
    assert windows_of(x, 2)[0, :, :, 0].tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 0]]
    assert windows_of(x[:, :6], 2)[0, :, :, 0].tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]


@pytest.mark.slow
def test_items_do_not_see_each_other_and_no_gradient_reaches_the_positions(params):
    module = WhisperEncoder(CONFIG)
    values = np.random.default_rng(0).normal(size=(2, 3, 12, 5)).astype(np.float32)
    media = Media(values, np.array([[1, 2, 3], [1, 0, 0]], np.int32))
    out = jax.jit(module.apply)({"params": params}, media)
    assert out.stage == "encoded" and out.values.shape == (2, 18, 12)
    assert out.segment_ids[1].tolist() == [1] * 6 + [0] * 12
    alone = module.apply({"params": params}, values.reshape(6, 12, 5), method="run")["last_hidden_state"]
    np.testing.assert_allclose(out.values.reshape(6, 6, 12), alone, atol=1e-6)

    loss = lambda params: jnp.sum(jnp.sin(module.apply({"params": params}, media).values))
    slopes = {path: np.abs(slope).max() for path, slope in flatten(jax.jit(jax.grad(loss))(params)).items()}
    assert [path for path, slope in slopes.items() if slope == 0] == ["position_embedding"]
    full = WhisperEncoder(CONFIG, remat="full").apply({"params": params}, media)
    np.testing.assert_allclose(full.values, out.values, atol=1e-6)


def test_bad_options_and_inputs_are_named(params):
    for change, words in (
        ({"activation": "gelo"}, "whisper.activation"),
        ({"num_heads": 5}, "width 12 is not a multiple of num_heads 5"),
        ({"width": 3}, "even and at least 4"),
        ({"max_positions": 0}, "max_positions must be at least 1, got 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(CONFIG, **change)
    with pytest.raises(ValueError, match="10 frames x 5 bands, but the encoder takes 12 x 5"):
        WhisperEncoder(CONFIG).apply({"params": params}, np.zeros((1, 10, 5)), method="run")
