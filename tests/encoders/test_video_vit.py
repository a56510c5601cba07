"""Tubelets, positions and configs of video encoders; what they compute is compared with transformers elsewhere."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.encoders.dual import Tower
from mmjax.encoders.timesformer import TimeSformerConfig
from mmjax.encoders.video_vit import VideoViTConfig, paired_sines, tubelets_of

VIDEOMAE = VideoViTConfig(5, 9, 2, 4, 12, 2, 3, 16)
TIMESFORMER = TimeSformerConfig(3, 9, 4, 12, 2, 3, 16)


def test_tubelets_stand_by_time_row_and_column():
    videos = np.random.default_rng(0).normal(size=(2, 5, 9, 13, 3))
    tubelets = tubelets_of(videos, 2, 4)
    assert tubelets.shape == (2, 2 * 2 * 3, 2, 4, 4, 3)
    for time in range(2):
        for row in range(2):
            for column in range(3):
                wanted = videos[:, 2 * time : 2 * time + 2, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                np.testing.assert_array_equal(tubelets[:, (time * 2 + row) * 3 + column], wanted)


def test_sines_stand_in_pairs():
    table = paired_sines(7, 5)
    for position in range(7):
        for channel in range(5):
            angle = position / 10000 ** (2 * (channel // 2) / 5)
            wanted = np.cos(angle) if channel % 2 else np.sin(angle)
            assert abs(table[position, channel] - wanted) < 1e-6


def test_counts():
    assert VIDEOMAE.num_tokens() == 8 and VIDEOMAE.grid_size == (2, 2, 2) and VIDEOMAE.item_shape == (5, 9, 9, 3)
    vivit = dataclasses.replace(VIDEOMAE, class_token=True)
    assert vivit.num_tokens() == 9
    assert dataclasses.replace(vivit, feature_strategy="patches").num_tokens() == 8
    assert TIMESFORMER.num_tokens() == 13 and TIMESFORMER.num_tokens((5, 2, 2)) == 21
    space = dataclasses.replace(TIMESFORMER, attention="space")
    assert space.num_tokens() == 15
    assert dataclasses.replace(space, feature_strategy="patches").num_tokens() == 12
    for config in (VIDEOMAE, vivit, TIMESFORMER, space):
        assert from_dict(type(config), to_dict(config)) == config


def test_keys_have_a_bias_only_where_asked():
    for options, names in ((dict(), "qv"), (dict(key_bias=True), "qkv"), (dict(qkv_bias=False), "")):
        attn = Tower(dataclasses.replace(VIDEOMAE, **options)).param_shapes()["blocks"]["attn"]
        assert {name for name in "qkv" if "bias" in attn[name]} == set(names)


@pytest.mark.parametrize("config, options, words", [
    (VIDEOMAE, dict(width=13), "width 13 is not a multiple of num_heads 3"),
    (VIDEOMAE, dict(tubelet_size=6), "num_frames 5 is smaller than tubelet_size 6"),
    (VIDEOMAE, dict(patch_size=10), "image_size 9 is smaller than patch_size 10"),
    (VIDEOMAE, dict(tubelet_size=0), "tubelet_size must be at least 1, got 0"),
    (VIDEOMAE, dict(pool="dense"), 'pool "dense" needs class_token'),
    (VIDEOMAE, dict(qkv_bias=False, key_bias=True), "key_bias needs qkv_bias"),
    (VIDEOMAE, dict(positions="rotary"), "video_vit.positions"),
    (TIMESFORMER, dict(attention="axial"), "timesformer.attention"),
    (TIMESFORMER, dict(num_frames=0), "num_frames must be at least 1, got 0"),
    (TIMESFORMER, dict(width=13), "width 13 is not a multiple of num_heads 3"),
    (TIMESFORMER, dict(patch_size=10), "image_size 9 is smaller than patch_size 10"),
])  # fmt: skip
def test_options_that_do_not_fit(config, options, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(config, **options)


@pytest.mark.parametrize("config", [VIDEOMAE, TIMESFORMER])
def test_videos_of_another_size_are_an_error(config):
    with pytest.raises(ValueError, match=r"\(.*8, 9, 3\), but the encoder takes \(.*9, 9, 3\)"):
        videos = np.zeros((1, config.num_frames, 8, 9, 3))
        jax.eval_shape(lambda: Tower(config).module.init(jax.random.key(0), videos, method="create"))
