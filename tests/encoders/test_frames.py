"""Videos frame by frame: features as of single images, and what projectors make of them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Media
from mmjax.encoders.convnext import ConvNeXtConfig
from mmjax.encoders.dual import Tower
from mmjax.encoders.frames import Frames, FramesConfig
from mmjax.encoders.vit import ViT, ViTConfig
from mmjax.projectors.qformer import QFormerConfig, QFormerProjector

VIT = ViTConfig(13, 4, 12, 2, 3, 16, feature_layers=(-2, -1), feature_strategy="patches")
CONFIG = FramesConfig(VIT, 3)


@pytest.fixture(scope="module")
def params():
    shapes = Tower(CONFIG).param_shapes()
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def videos():
    return np.random.default_rng(1).normal(size=(2, 2, *CONFIG.item_shape)).astype(np.float32)


def test_frames_are_images_one_after_the_other(params, videos):
    segments = np.array([[1, 2], [1, 0]], np.int32)
    out = jax.jit(Frames(CONFIG).apply)({"params": params}, Media(videos, segments))
    encode = jax.jit(ViT(VIT).apply)
    alone = [
        encode({"params": params["frame"]}, Media(videos[:, item, frame][:, None])).values
        for item in range(2)
        for frame in range(3)
    ]
    np.testing.assert_allclose(out.values, np.concatenate(alone, axis=1), rtol=1e-5, atol=1e-5)
    assert out.stage == "encoded" and out.values.shape == (2, 2 * CONFIG.num_tokens(), CONFIG.feature_width)
    np.testing.assert_array_equal(out.segment_ids, np.repeat(segments, CONFIG.num_tokens(), axis=1))


def test_order_of_frames_is_order_of_features(params, videos):
    encode = jax.jit(lambda videos: Frames(CONFIG).apply({"params": params}, Media(videos)).values)
    order = np.array([2, 0, 1])
    frames = np.asarray(encode(videos[:, :1])).reshape(2, 3, -1, CONFIG.feature_width)
    turned = np.asarray(encode(videos[:, :1, order])).reshape(frames.shape)
    np.testing.assert_allclose(turned, frames[:, order], rtol=1e-5, atol=1e-5)
    assert np.abs(turned - frames).max() > 0.1


def test_run_gives_what_the_image_encoder_gives(params, videos):
    tower = Tower(CONFIG)
    out = jax.jit(tower)(params, videos[0])
    assert out["last_hidden_state"].shape == (2, 3, 10, 12) and out["pooled"].shape == (2, 3, 12)
    alone = jax.jit(Tower(VIT))(params["frame"], videos[0, 1])
    for name, value in alone.items():
        np.testing.assert_allclose(out[name][1], value, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_qformer_reads_frame_by_frame(params, videos):
    """InstructBLIP's way with videos: the Q-Former's item is a frame."""
    features = VIT.num_tokens()
    config = QFormerConfig(
        CONFIG.feature_width, 20, num_queries=4, query_width=12, num_layers=2, num_heads=2, mlp_width=14,
        num_features=features,
    )  # fmt: skip
    random = np.random.default_rng(2)
    example = Media(jnp.zeros((1, features, CONFIG.feature_width)), stage="encoded")
    shapes = jax.eval_shape(QFormerProjector(config).init, jax.random.key(0), example)["params"]
    weights = jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), nn.unbox(shapes))
    project = jax.jit(lambda media: QFormerProjector(config).apply({"params": weights}, media))
    encoded = Frames(CONFIG).apply({"params": params}, Media(videos))
    out = project(encoded)
    assert out.values.shape == (2, 2 * CONFIG.num_frames * config.num_queries, 20)
    for at in range(6):
        frame = slice(at * features, (at + 1) * features)
        alone = project(Media(encoded.values[:, frame], stage="encoded")).values
        np.testing.assert_allclose(out.values[:, at * 4 : (at + 1) * 4], alone, rtol=1e-5, atol=1e-5)


def test_counts_and_errors(params, videos):
    assert CONFIG.item_shape == (3, 13, 13, 3) and CONFIG.num_tokens() == 27
    assert CONFIG.num_tokens((5, 3, 3)) == 45
    native = FramesConfig(dataclasses.replace(VIT, resize_positions="bicubic"), 3)
    assert native.num_tokens((5, 2, 4)) == 40
    assert from_dict(FramesConfig, to_dict(CONFIG)) == CONFIG
    other = FramesConfig(ConvNeXtConfig(24, 3, (6, 10), (2, 1)), 2)
    assert from_dict(FramesConfig, to_dict(other)) == other and other.item_shape == (2, 24, 24, 3)
    with pytest.raises(ConfigError, match="num_frames must be at least 1, got 0"):
        FramesConfig(VIT, 0)
    with pytest.raises(ValueError, match="got 5 axes"):
        Frames(CONFIG).apply({"params": params}, Media(videos[:, 0]))
