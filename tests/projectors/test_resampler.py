"""Qwen-VL's resampler against torch's MultiheadAttention; grids, padding, size of the real one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Media
from mmjax.projectors.resampler import ResamplerConfig, ResamplerProjector

CONFIG = ResamplerConfig(in_width=9, width=24, grid=(5, 3), query_grid=(2, 2), num_heads=3, post=True)


def sines(width, side):
    """[side * side, width], position by position as the paper's table is defined, column before row."""
    table = np.zeros((side * side, width), np.float32)
    for at in range(side * side):
        for half, position in enumerate((at % side, at // side)):
            for i in range(width // 4):
                angle = position / 10000 ** (i / (width // 4))
                table[at, half * width // 2 + i] = math.sin(angle)
                table[at, half * width // 2 + width // 4 + i] = math.cos(angle)
    return torch.tensor(table)


def reference(config, params, features, padding=None):
    """features [R, h * w, in_width] of single grids, torch."""
    tensor = lambda *path: torch.tensor(np.asarray(_at(params, path)))
    width, side = config.width, config.query_grid[0]
    norm = lambda x, name: torch.nn.functional.layer_norm(
        x, (width,), tensor(name, "scale"), tensor(name, "bias"), config.norm_eps
    )
    attention = torch.nn.MultiheadAttention(width, config.num_heads, batch_first=True)
    with torch.no_grad():
        weights = [tensor("attn", name, "kernel").reshape(width, width).T for name in "qkv"]
        attention.in_proj_weight.copy_(torch.cat(weights))
        attention.in_proj_bias.copy_(torch.cat([tensor("attn", name, "bias").reshape(-1) for name in "qkv"]))
        attention.out_proj.weight.copy_(tensor("attn", "o", "kernel").reshape(width, width).T)
        attention.out_proj.bias.copy_(tensor("attn", "o", "bias"))
        table = sines(width, side)
        plane = table.reshape(1, side, side, width).permute(0, 3, 1, 2)
        keys = torch.nn.functional.interpolate(plane, size=config.grid, mode="bicubic", align_corners=False)
        keys = keys.permute(0, 2, 3, 1).reshape(-1, width)
        x = torch.tensor(features)
        x = x @ tensor("input", "kernel") if config.in_width != width else x
        x = norm(x, "context_norm")
        q = (norm(tensor("queries"), "query_norm") + table).expand(len(x), -1, -1)
        out = attention(q, x + keys, x, key_padding_mask=padding)[0]
        return norm(out, "post_norm") @ tensor("out", "kernel") if config.post else out


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


@pytest.mark.parametrize(
    "options", [{}, {"grid": (2, 2)}, {"grid": (1, 7), "in_width": 24, "post": False}], ids=["other", "same", "line"]
)
def test_equals_torch(tools, random, options):
    config = ResamplerConfig(**{**vars(CONFIG), **options})
    size = config.grid[0] * config.grid[1]
    params = tools.init(config, size)
    features = random.normal(size=(2, 3 * size, config.in_width)).astype(np.float32)
    segments = np.repeat(np.array([[1, 2, 3], [1, 0, 0]], np.int32), size, axis=1)
    media = tools.run(config, params, features, segment_ids=segments)
    theirs = reference(config, params, features.reshape(6, size, -1)[:4]).reshape(4, 4, 24)
    tools.close(np.asarray(media.values).reshape(6, 4, 24)[:4], theirs)
    np.testing.assert_array_equal(media.segment_ids, np.repeat([[1, 2, 3], [1, 0, 0]], 4, axis=1))


def test_padding_features_are_not_seen(tools, random):
    params = tools.init(CONFIG, 15)
    features = random.normal(size=(2, 15, 9)).astype(np.float32)
    seen = np.arange(15) < np.array([11, 2])[:, None]
    other = np.where(seen[..., None], features, 1e5).astype(np.float32)
    mine = tools.run(CONFIG, params, other, segment_ids=seen.astype(np.int32))
    tools.close(mine.values, reference(CONFIG, params, features, torch.tensor(~seen)))


def test_size_of_the_published_one():
    config = ResamplerConfig(in_width=1664, width=4096, grid=(32, 32))
    features = Media(jax.ShapeDtypeStruct((1, 1024, 1664), jnp.float32), stage="encoded")
    shapes = jax.eval_shape(ResamplerProjector(config).init, jax.random.key(0), features)
    millions = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) / 1e6
    assert round(millions / 1000, 2) == 0.08  # the paper's table 1
    assert config.num_tokens(1024) == 256


def test_counts_and_errors():
    assert CONFIG.num_tokens(15) == 4 and CONFIG.num_tokens(45, (3, 5, 3)) == 12
    assert from_dict(ResamplerConfig, to_dict(CONFIG)) == CONFIG
    with pytest.raises(ConfigError, match="16 features are no whole number of 5 x 3 grids of 15"):
        CONFIG.num_tokens(16)
    with pytest.raises(ConfigError, match="grids of 5 x 3, but the item has 3 x 5"):
        CONFIG.num_tokens(15, (1, 3, 5))
    with pytest.raises(ConfigError, match="width 22 is not a multiple of num_heads 3"):
        ResamplerConfig(9, 22, (5, 3), num_heads=3)
    with pytest.raises(ConfigError, match="width 6 is not a multiple of 4"):
        ResamplerConfig(9, 6, (5, 3), num_heads=3)
    with pytest.raises(ConfigError, match="sides of at least 1, got 0 x 3"):
        ResamplerConfig(9, 24, (0, 3), num_heads=3)
    with pytest.raises(ValueError, match="16 features are no whole number of 5 x 3 grids"):
        ResamplerProjector(CONFIG).init(jax.random.key(0), Media(jnp.zeros((1, 16, 9)), stage="encoded"))
