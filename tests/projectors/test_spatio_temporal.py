"""Means over frames and places against numpy."""

import numpy as np
import pytest

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.projectors.linear import LinearProjectorConfig
from mmjax.projectors.mlp import MLPProjectorConfig
from mmjax.projectors.spatio_temporal import SpatioTemporalConfig

FRAMES, PLACES = 3, 5
MLP = MLPProjectorConfig(7, 11, 6, activation="relu")


def config(means, projector=MLP):
    return SpatioTemporalConfig(projector, FRAMES, PLACES, means)


def reference(params, means, video):
    """One video [FRAMES, PLACES, C] as the paper's formulas say, with loops instead of means of axes."""
    parts = {
        "frames": [sum(video[frame]) / PLACES for frame in range(FRAMES)],
        "places": [sum(video[:, place]) / FRAMES for place in range(PLACES)],
    }
    x = np.stack([vector for part in means.split("_") for vector in parts[part]])
    each = params["each"]
    if "out" in each:
        return x @ each["out"]["kernel"] + each["out"]["bias"]
    x = np.maximum(x @ each["fc1"]["kernel"] + each["fc1"]["bias"], 0)
    return x @ each["fc2"]["kernel"] + each["fc2"]["bias"]


@pytest.mark.parametrize("means", ["frames", "places", "frames_places", "places_frames"])
def test_equals_numpy(tools, random, means):
    this = config(means, LinearProjectorConfig(7, 6) if means == "frames_places" else MLP)
    assert from_dict(SpatioTemporalConfig, to_dict(this)) == this
    params = tools.init(this, FRAMES * PLACES)
    videos = random.normal(size=(2, 2, FRAMES, PLACES, 7)).astype(np.float32)
    segments = np.repeat(np.array([[1, 2], [1, 0]], np.int32), FRAMES * PLACES, axis=1)
    out = tools.run(this, params, videos.reshape(2, -1, 7), segment_ids=segments)
    count = this.num_tokens(FRAMES * PLACES)
    assert count == {"frames": 3, "places": 5}.get(means, 8)
    wanted = [[reference(params, means, video) for video in row] for row in videos]
    tools.close(out.values, np.asarray(wanted).reshape(2, 2 * count, 6), 1e-5)
    np.testing.assert_array_equal(out.segment_ids, np.repeat([[1, 2], [1, 0]], count, axis=1))
    assert out.stage == "projected"


def test_order_of_frames_matters_to_frames_alone(tools, random):
    this = config("frames_places")
    params = tools.init(this, FRAMES * PLACES)
    video = random.normal(size=(1, FRAMES, PLACES, 7)).astype(np.float32)
    order = [2, 0, 1]
    first = tools.run(this, params, video.reshape(1, -1, 7)).values
    turned = tools.run(this, params, video[:, order].reshape(1, -1, 7)).values
    tools.close(turned[:, :FRAMES], np.asarray(first)[:, order], 1e-5)
    tools.close(turned[:, FRAMES:], first[:, FRAMES:], 1e-5)


def test_errors_name_both_counts(tools, random):
    with pytest.raises(ConfigError, match="3 frames of 5 features, 15 together, but the encoder gives 16"):
        config("frames").num_tokens(16)
    with pytest.raises(ConfigError, match="num_frames must be at least 1, got 0"):
        SpatioTemporalConfig(MLP, 0, 5)
    with pytest.raises(ConfigError, match="means"):
        config("both")
    with pytest.raises(ValueError, match="16 features are no whole number of videos of 3 x 5"):
        tools.run(config("frames"), {}, np.zeros((1, 16, 7), np.float32))
