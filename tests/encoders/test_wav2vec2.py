"""What transformers' classes do not say of wav2vec 2.0: counts, items in rows, their lengths, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.dual import Tower
from mmjax.encoders.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from mmjax.encoders.waveform import ConvPositions, frames_of
from mmjax.paths import flatten

CONFIG = Wav2Vec2Config(
    num_samples=47, width=12, num_layers=2, num_heads=3, mlp_width=10, conv_widths=(5, 7), conv_kernels=(6, 3),
    conv_strides=(4, 2), conv_norm="layer", position_kernel=4, position_groups=2, pre_norm=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    return jax.jit(Tower(CONFIG).init)(jax.random.key(0))


def test_counts():
    assert CONFIG.item_shape == (47,) and CONFIG.feature_width == 12 and CONFIG.num_tokens() == 5
    assert CONFIG.reach == 14 and [CONFIG.frames(n) for n in (13, 14, 21, 22)] == [0, 1, 1, 2]
    # Published sizes: 20 ms from frame to frame, 25 ms wide.
    published = Wav2Vec2Config(16000, 768, 12, 12, 3072)
    assert published.reach == 400 and published.num_tokens() == 49
    lengths = np.arange(1, 60)
    reference = [torch.nn.functional.unfold(torch.zeros(1, 1, 1, n), (1, 5), stride=3).shape[-1] for n in lengths[4:]]
    assert frames_of(lengths, (5,), (3,))[4:].tolist() == reference


@pytest.mark.slow
def test_items_have_their_own_lengths(params):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 2, 47)).astype(np.float32)
    grid = np.array([[[47, 1, 1], [23, 1, 1]], [[30, 1, 1], [0, 0, 0]]], np.int32)
    segments = np.array([[1, 2], [1, 0]], np.int32)
    apply = jax.jit(Wav2Vec2(CONFIG).apply)
    out = apply({"params": params}, Media(values, segments, grid))
    assert out.stage == "encoded" and out.values.shape == (2, 10, 12)
    assert out.segment_ids.tolist() == [[1] * 5 + [2] * 2 + [0] * 3, [1] * 3 + [0] * 7]
    assert np.isfinite(out.values).all()
    # No norm here runs over time: a shorter sound is the same alone.
    short = jax.jit(Tower(CONFIG))(params, values[0, 1:, :23])["last_hidden_state"]
    np.testing.assert_allclose(out.values[0, 5:7], short[0], atol=1e-5)
    # Padding may hold anything, and items are numbered where they have no numbers yet.
    other = np.where(np.arange(47) < grid[..., :1], values, 7.0).astype(np.float32)
    again = apply({"params": params}, Media(other, None, grid))
    assert again.segment_ids.tolist() == out.segment_ids.tolist()
    seen = np.asarray(out.segment_ids) > 0
    np.testing.assert_allclose(np.asarray(again.values)[seen], np.asarray(out.values)[seen], atol=1e-6)
    shapes = jax.eval_shape(apply, {"params": params}, Media(values, segments))
    assert shapes.values.shape == (2, 10, 12) and shapes.segment_ids.shape == (2, 10)
    assert jax.eval_shape(apply, {"params": params}, Media(values)).segment_ids is None


@pytest.mark.slow
def test_fresh_positions_and_gradients(params):
    # A fresh gain is about as long as the kernel is drawn, so that the weights are what they would be without it.
    positions = jax.jit(ConvPositions(64, 4, "gelu").init)(jax.random.key(1), jnp.zeros((1, 3, 48)))["params"]
    assert positions["kernel"].value.shape == (64, 12, 48) and positions["gain"].value.shape == (64,)
    lengths = jnp.sqrt(jnp.sum(positions["kernel"].value ** 2, axis=(1, 2)))
    np.testing.assert_allclose(lengths, positions["gain"].value, rtol=0.2)

    values = np.random.default_rng(1).normal(size=(2, 47)).astype(np.float32)
    run = lambda params, remat="none": Wav2Vec2(CONFIG, remat=remat).apply({"params": params}, values, method="run")
    loss = lambda params, remat: jnp.sum(jnp.sin(run(params, remat)["last_hidden_state"]))
    slopes, full = (jax.jit(jax.grad(lambda p: loss(p, remat)))(params) for remat in ("none", "full"))  # noqa: B023
    for path, slope in flatten(slopes).items():
        assert np.isfinite(slope).all() and (np.abs(slope).max() > 1e-6 or path.endswith("/k/bias")), path
        np.testing.assert_allclose(flatten(full)[path], slope, atol=1e-4, err_msg=path)


def test_bad_options_and_inputs_are_named(params):
    for change, words in (
        ({"activation": "gelo"}, "wav2vec2.activation"),
        ({"conv_norm": "group"}, "wav2vec2.conv_norm: 'group' is not one of"),
        ({"conv_strides": (4,)}, "conv_widths has 2, conv_kernels has 2, conv_strides has 1"),
        ({"conv_strides": (4, 0)}, "conv_strides must be at least 1 each"),
        ({"num_heads": 5}, "width 12 is not a multiple of num_heads 5"),
        ({"position_groups": 5}, "width 12 is not a multiple of position_groups 5"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_samples": 13}, "num_samples 13 is less than the 14 samples"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(CONFIG, **change)
    module = Wav2Vec2(CONFIG)
    with pytest.raises(ValueError, match=r"sound of \(46,\) samples .* counted for \(47,\)"):
        module.apply({"params": params}, Media(np.zeros((1, 1, 46), np.float32)))
    with pytest.raises(ValueError, match=r"shape \(2, 13\), but one frame is of 14 samples"):
        module.apply({"params": params}, np.zeros((2, 13), np.float32), method="run")
    with pytest.raises(ValueError, match="masked frames need an encoder with mask_token"):
        module.apply({"params": params}, np.zeros((1, 47)), None, np.ones((1, 5), bool), method="run")
