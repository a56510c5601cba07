"""Tokens of the first feature of each item: nothing else of it matters, and items do not mix."""

import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.projectors.class_tokens import ClassTokensConfig


def test_tokens_are_maps_of_first_features(tools, random):
    config = ClassTokensConfig(6, 5, tokens=4, num_features=3)
    params = tools.init(config, 3)
    assert params["out"]["kernel"].shape == (6, 4, 5) and config.num_tokens(3) == 4
    values = random.normal(size=(2, 6, 6)).astype(np.float32)
    segments = np.repeat(np.array([[1, 2], [1, 0]], np.int32), 3, axis=1)
    out = tools.run(config, params, values, segment_ids=segments)
    wanted = np.einsum("bic,ctd->bitd", values[:, ::3], params["out"]["kernel"]) + params["out"]["bias"]
    tools.close(out.values, wanted.reshape(2, 8, 5))
    np.testing.assert_array_equal(out.segment_ids, np.repeat([[1, 2], [1, 0]], 4, axis=1))
    assert out.stage == "projected"


def test_counts_that_do_not_fit():
    with pytest.raises(ConfigError, match="num_features is 3.*gives 4"):
        ClassTokensConfig(6, 5, 1, 3).num_tokens(4)
    with pytest.raises(ConfigError, match="tokens must be"):
        ClassTokensConfig(6, 5, 0)
