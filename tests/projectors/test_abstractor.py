"""The C-Abstractor against its formulas in torch, with grids that are no multiples."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.projectors.abstractor import AbstractorConfig

CONFIG = AbstractorConfig(9, 10, (5, 7), (3, 2), hidden=12, depth=2, mlp_depth=2, end_tokens=1, norm_eps=1e-4)


def torches(tree):
    return {k: torches(v) if isinstance(v, dict) else torch.tensor(np.asarray(v)) for k, v in tree.items()}


def layer(tree, number):
    return {k: layer(v, number) if isinstance(v, dict) else v[number] for k, v in tree.items()}


def conv_norm(params, name, x, eps, padding=0, groups=1):
    """x [R, C, h, w]."""
    kernel = params[name]["kernel"]
    kernel = kernel.permute(3, 2, 0, 1) if padding else kernel.T[..., None, None]
    x = F.conv2d(x, kernel, padding=padding, groups=groups).permute(0, 2, 3, 1)
    leaf = params[f"{name}_norm"]
    return F.layer_norm(x, x.shape[3:], leaf["scale"], leaf["bias"], eps).permute(0, 3, 1, 2)


def bottleneck(params, x, eps):
    y = F.silu(conv_norm(params, "reduce", x, eps))
    y = F.silu(conv_norm(params, "depthwise", y, eps, padding=1, groups=y.shape[1]))
    se = params["se"]
    gate = F.silu(F.linear(y.mean((2, 3)), se["fc1"]["kernel"].T, se["fc1"]["bias"]))
    gate = torch.sigmoid(F.linear(gate, se["fc2"]["kernel"].T, se["fc2"]["bias"]))
    y = conv_norm(params, "expand", y * gate[..., None, None], eps)
    return F.silu(y + (conv_norm(params, "shortcut", x, eps) if "shortcut" in params else x))


def reference(config, params, features):
    """features [R, h * w, in_width] of single grids -> [R, M, D]."""
    params = torches(params)
    x = torch.tensor(features)
    x = x + params["position"] if config.positions else x
    x = bottleneck(params["first"], x.transpose(1, 2).reshape(len(x), -1, *config.grid), config.norm_eps)
    for number in range(config.depth - 1):
        x = bottleneck(layer(params["before"], number), x, config.norm_eps)
    x = F.adaptive_avg_pool2d(x, config.out_grid)
    for number in range(config.depth):
        x = bottleneck(layer(params["behind"], number), x, config.norm_eps)
    x = x.flatten(2).transpose(1, 2)
    for number in range(1, config.mlp_depth + 1):
        x = F.silu(x) if number > 1 else x
        x = F.linear(x, params[f"fc{number}"]["kernel"].T, params[f"fc{number}"]["bias"])
    return torch.cat([x, params["end"].expand(len(x), -1, -1)], 1) if config.end_tokens else x


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"in_width": 12, "positions": False, "end_tokens": 0, "depth": 3, "mlp_depth": 1},
        {"grid": (2, 3), "out_grid": (4, 3), "depth": 1},
    ],
    ids=["no multiples", "same width", "larger"],
)
def test_equals_torch(tools, random, options):
    config = AbstractorConfig(**{**vars(CONFIG), **options})
    size = config.grid[0] * config.grid[1]
    params = tools.init(config, size)
    assert ("shortcut" in params["first"]) == (config.in_width != config.hidden)
    features = random.normal(size=(2, 2 * size, config.in_width)).astype(np.float32)
    segments = np.repeat(np.array([[1, 2], [1, 0]], np.int32), size, axis=1)
    media = tools.run(config, params, features, segment_ids=segments)
    each = config.num_tokens(size)
    theirs = reference(config, params, features.reshape(4, size, -1)).reshape(2, 2 * each, 10)
    tools.close(media.values, theirs)
    np.testing.assert_array_equal(media.segment_ids, np.repeat([[1, 2], [1, 0]], each, axis=1))


def test_counts_and_errors():
    assert AbstractorConfig(1024, 4096, (24, 24)).num_tokens(576) == 144
    assert CONFIG.num_tokens(35) == 7 and CONFIG.num_tokens(70, (2, 5, 7)) == 14
    assert from_dict(AbstractorConfig, to_dict(CONFIG)) == CONFIG
    with pytest.raises(ConfigError, match="36 features are no whole number of 5 x 7 grids of 35"):
        CONFIG.num_tokens(36)
    with pytest.raises(ConfigError, match="depth must be at least 1, got 0"):
        AbstractorConfig(9, 10, (5, 7), depth=0)
    with pytest.raises(ConfigError, match="squeeze 0.05 leaves no channel of 9"):
        AbstractorConfig(9, 10, (5, 7), squeeze=0.05)
