"""A Q-Former over what each frame became, against the Q-Former applied frame by frame in a loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.projectors.qformer import QFormerConfig, QFormerProjector
from mmjax.projectors.video_qformer import VideoQFormerConfig

FRAME = QFormerConfig(6, 8, 3, 8, 2, 2, 12, num_features=5)
VIDEO = QFormerConfig(8, 10, 2, 12, 2, 3, 16, cross_attention_frequency=1)
CONFIG = VideoQFormerConfig(VIDEO, 4, FRAME)


def queries_of(config, params, x):
    """One Q-Former of an item [N, in_width], with the map behind it an identity."""
    same = {"kernel": np.eye(config.query_width, dtype=np.float32), "bias": np.zeros(config.query_width, np.float32)}
    alone = dataclasses.replace(config, width=config.query_width, num_features=len(x))
    module = QFormerProjector(alone)
    return module.apply({"params": {**params, "out": same}}, Media(x[None], stage="encoded")).values[0]


def mapped(params, tokens):
    return tokens @ params["out"]["kernel"] + params["out"]["bias"]


@jax.jit
def by_hand(params, item):
    """An item [20, 6] of CONFIG, frame by frame."""
    frames = [queries_of(FRAME, params["frame"], item[5 * t : 5 * t + 5]) + params["positions"][t] for t in range(4)]
    return mapped(params, queries_of(VIDEO, params["video"], jnp.concatenate(frames)))


def test_frame_by_frame_then_over_all(tools):
    params = tools.init(CONFIG, 20)
    values = np.random.default_rng(0).normal(size=(2, 2 * 20, 6)).astype(np.float32)
    segments = np.repeat([[1, 2], [1, 0]], 20, axis=1).astype(np.int32)
    out = tools.run(CONFIG, params, values, segment_ids=segments)
    assert out.values.shape == (2, 2 * 2, 10) and np.asarray(out.segment_ids).tolist() == [[1, 1, 2, 2], [1, 1, 0, 0]]
    np.testing.assert_allclose(out.values[0, 2:], by_hand(params, values[0, 20:]), atol=1e-5)


def test_clips_of_one_feature(tools):
    """What ImageBind's tower of sound gives; another order of clips is another sound."""
    config = VideoQFormerConfig(VIDEO, 3)
    params = tools.init(config, 3)
    item = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    wanted = jax.jit(lambda p, x: mapped(p, queries_of(VIDEO, p["video"], x + p["positions"])))(params, item)
    there, back = tools.run(config, params, np.stack([item, item[::-1]])).values
    np.testing.assert_allclose(there, wanted, atol=1e-5)
    assert np.abs(back - there).max() > 1e-3
    assert config.num_tokens(3) == 2 and config.in_width == 8


def test_parts_that_do_not_fit():
    with pytest.raises(ConfigError, match="must be one"):
        VideoQFormerConfig(VIDEO, 4, dataclasses.replace(FRAME, width=9))
    with pytest.raises(ConfigError, match="frame.num_features"):
        VideoQFormerConfig(VIDEO, 4, dataclasses.replace(FRAME, num_features=None))
    with pytest.raises(ConfigError, match="neither Q-Former reads text"):
        VideoQFormerConfig(dataclasses.replace(VIDEO, vocab_size=9), 4, FRAME)
    with pytest.raises(ConfigError, match="15 features an item are not 4 frames of 5"):
        CONFIG.num_tokens(15)
