"""A Q-Former over what each frame became, against the Q-Former applied frame by frame in a loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.projectors.qformer import QFormerConfig, QFormerProjector
from mmjax.projectors.video_qformer import VideoQFormerConfig, VideoQFormerProjector

FRAME = QFormerConfig(6, 8, 3, 8, 2, 2, 12, num_features=5)
VIDEO = QFormerConfig(8, 10, 2, 12, 2, 3, 16, cross_attention_frequency=1)
CONFIG = VideoQFormerConfig(VIDEO, 4, FRAME)


def randomised(tree):
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32), tree)


def queries_of(config, params, x):
    """One Q-Former of an item [N, in_width], with the map behind it an identity."""
    same = {"kernel": np.eye(config.query_width, dtype=np.float32), "bias": np.zeros(config.query_width, np.float32)}
    alone = dataclasses.replace(config, width=config.query_width, num_features=len(x))
    module = QFormerProjector(alone)
    return module.apply({"params": {**params, "out": same}}, Media(x[None], stage="encoded")).values[0]


def mapped(params, tokens):
    return tokens @ params["out"]["kernel"] + params["out"]["bias"]


def made(config, length):
    module = VideoQFormerProjector(config)
    media = Media(jnp.zeros((1, length, config.in_width)), stage="encoded")
    return module, randomised(nn.unbox(module.init(jax.random.key(0), media)["params"]))


def test_frame_by_frame_then_over_all():
    module, params = made(CONFIG, 20)
    values = np.random.default_rng(0).normal(size=(2, 2 * 20, 6)).astype(np.float32)
    segments = np.repeat([[1, 2], [1, 0]], 20, axis=1).astype(np.int32)
    out = module.apply({"params": params}, Media(values, segments, stage="encoded"))
    assert out.values.shape == (2, 2 * 2, 10) and np.asarray(out.segment_ids).tolist() == [[1, 1, 2, 2], [1, 1, 0, 0]]
    item = values[0, 20:]
    frames = [queries_of(FRAME, params["frame"], item[5 * t : 5 * t + 5]) + params["positions"][t] for t in range(4)]
    wanted = mapped(params, queries_of(VIDEO, params["video"], jnp.concatenate(frames)))
    np.testing.assert_allclose(out.values[0, 2:], wanted, atol=1e-5)


def test_clips_of_one_feature():
    """What ImageBind's tower of sound gives; another order of clips is another sound."""
    config = VideoQFormerConfig(VIDEO, 3)
    module, params = made(config, 3)
    item = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    run = lambda x: module.apply({"params": params}, Media(x[None], stage="encoded")).values[0]
    wanted = mapped(params, queries_of(VIDEO, params["video"], item + params["positions"]))
    np.testing.assert_allclose(run(item), wanted, atol=1e-5)
    assert np.abs(run(item[::-1]) - run(item)).max() > 1e-3
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
