"""MobileVLM's projectors against their formulas in torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.projectors.ldp import LDPConfig, LDPv2Config, _squeezed


def torches(tree):
    return {k: torches(v) if isinstance(v, dict) else torch.tensor(np.asarray(v)) for k, v in tree.items()}


def maps(params, x):
    """[R, N, in] -> [R, N, D]."""
    x = F.gelu(F.linear(x, params["fc1"]["kernel"].T, params["fc1"]["bias"]))
    return F.linear(x, params["fc2"]["kernel"].T, params["fc2"]["bias"])


def depthwise(kernel, x, stride=1, bias=None):
    """x [R, D, h, w]."""
    return F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride, padding=1, groups=x.shape[1])


def norm(leaf, x, eps):
    channels_last = x.permute(0, 2, 3, 1)
    return F.layer_norm(channels_last, x.shape[1:2], leaf["scale"], leaf["bias"], eps).permute(0, 3, 1, 2)


def residual(params, x, stride, eps):
    y = depthwise(params["depthwise"]["kernel"], x, stride)
    y = F.hardswish(norm(params["depthwise_norm"], y, eps))
    mean = F.adaptive_avg_pool2d(y, 1)[..., 0, 0]
    squeezed = F.relu(F.linear(mean, params["se"]["fc1"]["kernel"].T, params["se"]["fc1"]["bias"]))
    gate = F.hardsigmoid(F.linear(squeezed, params["se"]["fc2"]["kernel"].T, params["se"]["fc2"]["bias"]))
    y = F.conv2d(y * gate[..., None, None], params["pointwise"]["kernel"].T[..., None, None])
    y = norm(params["pointwise_norm"], y, eps)
    return x + y if stride == 1 else y


@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (1, 1)])
def test_ldp(tools, random, grid):
    config = LDPConfig(7, 20, grid, norm_eps=1e-4)
    size = grid[0] * grid[1]
    params = tools.init(config, size)
    features = random.normal(size=(2, 2 * size, 7)).astype(np.float32)
    segments = np.repeat(np.array([[1, 2], [1, 0]], np.int32), size, axis=1)
    media = tools.run(config, params, features, segment_ids=segments)
    params = torches(params)
    x = maps(params, torch.tensor(features).reshape(4, size, 7))
    x = x.transpose(1, 2).reshape(4, 20, *grid)
    x = residual(params["halve"], residual(params["keep"], x, 1, 1e-4), 2, 1e-4)
    each = config.num_tokens(size)
    assert x.shape[2:] == config.out_grid
    tools.close(media.values, x.flatten(2).transpose(1, 2).reshape(2, 2 * each, 20))
    np.testing.assert_array_equal(media.segment_ids, np.repeat([[1, 2], [1, 0]], each, axis=1))


@pytest.mark.parametrize("grid, out_grid", [((6, 4), (3, 2)), ((5, 7), (3, 4))])
def test_ldp_v2(tools, random, grid, out_grid):
    config = LDPv2Config(7, 20, grid, out_grid)
    size = grid[0] * grid[1]
    params = tools.init(config, size)
    features = random.normal(size=(2, size, 7)).astype(np.float32)
    mine = tools.run(config, params, features).values
    params = torches(params)
    x = maps(params, torch.tensor(features)).transpose(1, 2).reshape(2, 20, *grid)
    x = F.adaptive_avg_pool2d(x, out_grid)
    x = x + depthwise(params["position"]["kernel"], x, bias=params["position"]["bias"])
    tools.close(mine, x.flatten(2).transpose(1, 2))


def test_counts_and_errors():
    first, second = LDPConfig(1024, 2048, (24, 24)), LDPv2Config(1024, 2048, (24, 24))
    assert first.num_tokens(576) == second.num_tokens(576) == 144  # MobileVLM's
    assert LDPConfig(7, 20, (5, 3)).num_tokens(30, (2, 5, 3)) == 12
    assert [_squeezed(channels) for channels in (8, 20, 64, 72, 2048, 76)] == [8, 8, 16, 24, 512, 24]
    for config in (first, second):
        assert from_dict(type(config), to_dict(config)) == config
        with pytest.raises(ConfigError, match="577 features are no whole number of 24 x 24 grids of 576"):
            config.num_tokens(577)
    with pytest.raises(ConfigError, match="ldp_v2 projector: out_grid must have sides of at least 1, got 0 x 2"):
        LDPv2Config(7, 20, (5, 3), (0, 2))
