"""Features of several layers: each merged as if it came alone; counts and axes."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Media
from mmjax.distributed.rules import is_axes
from mmjax.paths import flatten
from mmjax.projectors.deep_merge import DeepMergeConfig, DeepMergeProjector
from mmjax.projectors.downsample import MergeConfig

MERGE = MergeConfig(7, 10, order="blocks", norm_at="before", hidden=28)
CONFIG = DeepMergeConfig(MERGE, 2)


def test_layers_by_themselves(tools, random):
    params = tools.init(CONFIG, 4)
    features = random.normal(size=(2, 16, 21)).astype(np.float32)
    segments = np.array([[1] * 4 + [2] * 8 + [0] * 4, [1] * 16], np.int32)
    media = tools.run(CONFIG, params, features, segment_ids=segments)
    assert media.stage == "projected" and media.values.shape == (2, 4, 30)
    np.testing.assert_array_equal(media.segment_ids, [[1, 2, 2, 0], [1] * 4])
    after = dataclasses.replace(MERGE, norm_at="after")
    for number, (name, config) in enumerate((("merge", MERGE), ("deep_0", after), ("deep_1", after))):
        alone = tools.run(config, params[name], features[..., 7 * number : 7 * number + 7])
        tools.close(media.values[..., 10 * number : 10 * number + 10], alone.values, 1e-5)


def test_config_and_axes():
    assert from_dict(DeepMergeConfig, to_dict(CONFIG)) == CONFIG
    assert (CONFIG.in_width, CONFIG.width, CONFIG.factor) == (21, 10, 2)
    assert CONFIG.num_tokens(24, (1, 4, 6)) == 6
    with pytest.raises(ConfigError, match="more must be at least 1, got 0"):
        DeepMergeConfig(MERGE, 0)
    features = Media(np.zeros((1, 4, 21), np.float32), stage="encoded")
    boxed = jax.eval_shape(DeepMergeProjector(CONFIG).init, jax.random.key(0), features)["params"]
    is_box = lambda leaf: hasattr(leaf, "names")
    axes = flatten(jax.tree.map(lambda box: box.names, boxed, is_leaf=is_box))
    assert len(axes) == 18 and all(map(is_axes, axes.values()))
