"""Which frames are taken: counts, order, edges, and the draw."""

import numpy as np
import pytest

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.frames import (
    FrameSampling,
    at_fps,
    centres,
    centres_at_fps,
    ends,
    head,
    inner_at_fps,
    random_in_segments,
    starts,
)


def test_known_indices():
    assert centres(10, 5).tolist() == [1, 3, 5, 7, 9]
    assert centres(7, 3).tolist() == [1, 3, 5]
    assert ends(10, 4).tolist() == [0, 3, 6, 9]
    assert ends(9, 1).tolist() == [0]
    assert starts(10, 4).tolist() == [0, 2, 5, 7]
    assert head(10, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 2, 7, 100, 1001])
@pytest.mark.parametrize("wanted", [1, 3, 8, 64])
def test_every_policy_stays_inside_and_rises(count, wanted):
    rng = np.random.default_rng(0)
    for indices in (
        centres(count, wanted),
        ends(count, wanted),
        starts(count, wanted),
        head(count, wanted),
        random_in_segments(count, wanted, rng),
    ):
        assert indices.shape == (wanted,) and indices.dtype == np.int64
        assert 0 <= indices[0] and indices[-1] < count and (np.diff(indices) >= 0).all()
    np.testing.assert_array_equal(ends(count, wanted), np.linspace(0, count - 1, wanted, dtype=int))
    mirrored = count - 1 - centres(count, wanted)[::-1]
    assert np.abs(mirrored - centres(count, wanted)).max() <= 1, "the middles of segments lie symmetrically"
    if count <= wanted:
        assert set(centres(count, wanted)) == set(starts(count, wanted)) == set(range(count))


def test_short_videos_repeat_frames():
    assert centres(2, 4).tolist() == [0, 0, 1, 1]
    assert head(2, 4).tolist() == [0, 1, 1, 1]


def test_random_draws_each_frame_of_a_segment_alike():
    rng = np.random.default_rng(3)
    draws = np.stack([random_in_segments(12, 3, rng) for _ in range(4000)])
    for segment in range(3):
        counts = np.bincount(draws[:, segment] - 4 * segment, minlength=4)
        assert len(counts) == 4 and np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 0.75)
    same = [random_in_segments(12, 3, np.random.default_rng(1)).tolist() for _ in range(2)]
    assert same[0] == same[1]


def test_rates_of_single_systems():
    assert centres_at_fps(100, 25.0, 1, 50).tolist() == [12, 37, 62, 87]
    assert centres_at_fps(10, 25.0, 1, 50).tolist() == [5], "less than a second: its middle"
    # 3.6 seconds: 3.6 rounded, from the first to the last.
    assert inner_at_fps(36, 10.0, 1, 64).tolist() == [0, 11, 23, 35]
    # A second at either end is left out of what is much longer than wanted.
    assert inner_at_fps(100, 10.0, 1, 3).tolist() == [10, 50, 90]
    assert inner_at_fps(50, 10.0, 1, 3).tolist() == [0, 24, 49]
    assert inner_at_fps(1, 10.0, 1, 3).tolist() == [0] and inner_at_fps(3, 1.0, 9, 64).tolist() == [0, 1, 2]
    for policy, wanted in (("centres_fps", [12, 37, 62, 87]), ("inner_fps", [0, 33, 66, 99])):
        sampling = FrameSampling(policy, 50, 1.0)
        assert sampling(100, 25.0).tolist() == wanted
        with pytest.raises(ValueError, match="needs the video's own rate"):
            sampling(100, None)
        with pytest.raises(ConfigError, match='fps goes with policy "fps" or "centres_fps" or "inner_fps"'):
            FrameSampling(policy, 50)


def test_at_fps():
    assert at_fps(100, 25.0, 1, 50).tolist() == [0, 25, 50, 75]
    assert at_fps(100, 25.0, 5, 8).tolist() == starts(100, 8).tolist(), "over the maximum: spread over the whole"
    assert at_fps(10, 25.0, 1, 8).tolist() == [0], "less than a second: one frame"
    assert at_fps(10, 5.0, 50, 99).tolist() == list(range(10)), "no frame twice"
    for rate in (None, 0.0, float("nan")):
        with pytest.raises(ValueError, match="needs the video's own rate"):
            at_fps(10, rate, 1, 8)


def test_sampling_is_the_policies():
    rng = np.random.default_rng
    for policy, wanted in (("uniform", centres), ("ends", ends), ("starts", starts), ("head", head)):
        np.testing.assert_array_equal(FrameSampling(policy, 5)(33), wanted(33, 5))
    drawn = FrameSampling("random", 5)(33, rng=rng(2))
    np.testing.assert_array_equal(drawn, random_in_segments(33, 5, rng(2)))
    np.testing.assert_array_equal(FrameSampling("fps", 5, 2.0)(33, 10.0), at_fps(33, 10.0, 2.0, 5))
    this = FrameSampling("fps", 5, 2.0, 3)
    assert from_dict(FrameSampling, to_dict(this)) == this


def test_errors():
    with pytest.raises(ValueError, match="too short: 3 frames, at least 4 are needed"):
        FrameSampling(min_frames=4)(3)
    with pytest.raises(ValueError, match="needs an rng"):
        FrameSampling("random")(3)
    with pytest.raises(ValueError, match="8 frames of a video of 0"):
        centres(0, 8)
    for options, words in (
        (dict(policy="middle"), "policy"),
        (dict(num_frames=0), "num_frames must be at least 1, got 0"),
        (dict(policy="fps"), 'fps goes with policy "fps"'),
        (dict(fps=1.0), 'fps goes with policy "fps"'),
        (dict(policy="fps", fps=-1.0), "fps must be positive"),
    ):
        with pytest.raises(ConfigError, match=words):
            FrameSampling(**options)
