"""The point cloud transformer against a slow one in torch, under permutation of the points, and with padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Media
from mmjax.encoders.dual import Tower
from mmjax.encoders.point_cloud import PointCloud, PointCloudConfig
from mmjax.interop.point_bert import export_point_bert

COLOURED = PointCloudConfig(
    21, 6, 7, 5, 12, 2, 3, 20, group_width=10, point_widths=(6, 9), position_width=11, start="farthest"
)
PLAIN = dataclasses.replace(COLOURED, channels=3, start="first", qkv_bias=True, num_layers=1)


def randomised(config, seed=0):
    """Params whose every leaf matters; variances are positive."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = 0.4 * rng.normal(size=leaf.shape)
        name = path[-1].key
        return np.asarray(1 + values**2 if name == "var" else 1 + values if name == "scale" else values, np.float32)

    return jax.tree_util.tree_map_with_path(draw, Tower(config).param_shapes())


def clouds(config, batch=3, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, *config.item_shape)).astype(np.float32)


def slow_tower(w, config, cloud):
    """One cloud [N, C] through the transformer, group by group -> (states [1 + G, D], pooled [2 D])."""
    c = config
    places = cloud[:, :3]
    away = (places - (places.mean(0) if c.start == "farthest" else places[0])).square().sum(1)
    chosen = [int(away.argmax()) if c.start == "farthest" else 0]
    while len(chosen) < c.num_groups:
        least = torch.stack([(places - places[at]).square().sum(1) for at in chosen]).amin(0)
        chosen.append(int(least.argmax()))
    tokens, positions = [w["cls_token"][0, 0]], [w["cls_pos"][0, 0]]

    def conv(x, name):
        return F.conv1d(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.relu(F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"]))

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def layer_norm(x, name):
        return F.layer_norm(x, (c.width,), w[f"{name}.weight"], w[f"{name}.bias"])

    for at in chosen:
        members = cloud[(places - places[at]).square().sum(1).argsort()[: c.group_size]].clone()
        members[:, :3] -= places[at]
        x = conv(norm(conv(members.T[None], "encoder.first_conv.0"), "encoder.first_conv.1"), "encoder.first_conv.3")
        x = torch.cat([x.amax(2, keepdim=True).expand_as(x), x], dim=1)
        x = conv(norm(conv(x, "encoder.second_conv.0"), "encoder.second_conv.1"), "encoder.second_conv.3")
        tokens.append(linear(x.amax(2)[0], "reduce_dim"))
        positions.append(linear(F.gelu(linear(places[at], "pos_embed.0")), "pos_embed.2"))
    x, positions = torch.stack(tokens), torch.stack(positions)
    for layer in range(c.num_layers):
        name = f"blocks.blocks.{layer}"
        x = x + positions
        qkv = linear(layer_norm(x, f"{name}.norm1"), f"{name}.attn.qkv").reshape(len(x), 3, c.num_heads, -1)
        q, k, v = qkv.permute(1, 2, 0, 3)
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear((weights @ v).transpose(0, 1).reshape(len(x), -1), f"{name}.attn.proj")
        x = x + linear(F.gelu(linear(layer_norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
    x = layer_norm(x, "norm")
    return x, torch.cat([x[0], x[1:].amax(0)])


def runner(config):
    return jax.jit(Tower(config).__call__)


@pytest.mark.parametrize("config", [COLOURED, PLAIN], ids=["coloured", "plain"])
def test_against_the_slow_one(config):
    assert from_dict(PointCloudConfig, to_dict(config)) == config
    params, values = randomised(config), clouds(config)
    out = runner(config)(params, values)
    theirs = {name: torch.tensor(leaf) for name, leaf in export_point_bert(params, config).items()}
    for row, cloud in enumerate(values):
        states, pooled = slow_tower(theirs, config, torch.tensor(cloud))
        for ours, expected in ((out["last_hidden_state"][row], states), (out["pooled"][row], pooled)):
            bound = 1e-4 * max(1.0, float(expected.square().mean().sqrt()))
            np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=bound)


def test_the_order_of_the_points_does_not_matter():
    params, values = randomised(COLOURED), clouds(COLOURED)
    run = runner(COLOURED)
    mixed = np.stack([cloud[np.random.default_rng(row).permutation(21)] for row, cloud in enumerate(values)])
    first, second = run(params, values), run(params, mixed)
    for name in ("last_hidden_state", "pooled"):
        np.testing.assert_allclose(first[name], second[name], atol=2e-5)
    assert np.abs(np.diff(first["pooled"], axis=0)).max() > 0.1


@pytest.mark.slow
def test_padding_is_not_seen():
    # A cloud of 9 points in room for 21, the rest being no numbers; and one of 4, too few for 7 groups.
    params, values = randomised(COLOURED), clouds(COLOURED, 2)
    padded = values.copy()
    padded[0, 9:], padded[1, 4:] = np.nan, np.nan
    out = runner(COLOURED)(params, padded)
    masked = runner(COLOURED)(params, values, np.isfinite(padded).all(-1))
    np.testing.assert_array_equal(out["last_hidden_state"], masked["last_hidden_state"])
    theirs = {name: torch.tensor(leaf) for name, leaf in export_point_bert(params, COLOURED).items()}
    states, pooled = slow_tower(theirs, COLOURED, torch.tensor(values[0, :9]))
    np.testing.assert_allclose(out["last_hidden_state"][0], states.numpy(), atol=1e-4)
    np.testing.assert_allclose(out["pooled"][0], pooled.numpy(), atol=1e-4)
    fewer = dataclasses.replace(COLOURED, num_groups=4)
    states, pooled = slow_tower(theirs, fewer, torch.tensor(values[1, :4]))
    np.testing.assert_array_equal(out["seen"], [[True] * 8, [True] * 5 + [False] * 3])
    np.testing.assert_allclose(out["last_hidden_state"][1, :5], states.numpy(), atol=1e-4)
    np.testing.assert_allclose(out["pooled"][1], pooled.numpy(), atol=1e-4)


@pytest.mark.quick("patches")
@pytest.mark.parametrize("strategy", ["full", "patches", "pooled"])
def test_as_an_encoder(strategy):
    config = dataclasses.replace(COLOURED, feature_strategy=strategy)
    params, values = randomised(config), clouds(config, 4).reshape(2, 2, 21, 6)
    values[1, 0, 6:] = np.nan
    media = Media(values, np.array([[1, 2], [1, 0]], np.int32))
    out = jax.jit(lambda media: PointCloud(config).apply({"params": params}, media))(media)
    assert out.stage == "encoded" and out.values.shape == (2, 2 * config.num_tokens(), config.feature_width)
    alone = runner(config)(params, jnp.asarray(values.reshape(4, 21, 6)))
    expected = alone["pooled"][:, None] if strategy == "pooled" else alone["last_hidden_state"]
    expected = expected[:, 1:] if strategy == "patches" else expected
    np.testing.assert_allclose(out.values.reshape(expected.shape), expected, atol=1e-5)
    lacking = strategy != "pooled"  # one group of the third cloud
    assert np.bincount(out.segment_ids.ravel(), minlength=3).tolist() == [
        config.num_tokens() + lacking,
        2 * config.num_tokens() - lacking,
        config.num_tokens(),
    ]


def test_errors():
    with pytest.raises(ValueError, match="clouds of 20 points with 6 channels, but the encoder takes 21 with 6"):
        Tower(COLOURED)(randomised(COLOURED), jnp.zeros((1, 20, 6)))
    with pytest.raises(ConfigError, match=r"point_cloud.group_size must be in 1..num_points 21, got 22"):
        dataclasses.replace(COLOURED, group_size=22)
    with pytest.raises(ConfigError, match="point_cloud.channels must be at least 3"):
        dataclasses.replace(COLOURED, channels=2)
