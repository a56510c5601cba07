"""Tokens of regions against slow versions in torch and numpy; what every region projector owes to its callers."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.distributed.rules import spec
from mmjax.nn.region_points import PointMerge, features_at, points_inside
from mmjax.paths import flatten
from mmjax.projectors.regions import REGIONS
from mmjax.projectors.regions.mask_tokens import MaskTokensConfig
from mmjax.projectors.regions.roi_token import RoITokenConfig
from mmjax.projectors.regions.sampled_token import SampledTokenConfig

CONFIGS = {
    "roi_token": RoITokenConfig(
        (6, 6, 6), 10, hidden=8, fusions=2, groups=2, out_size=3, place_hidden=5, token_width=7
    ),
    "roi_token of a pyramid": RoITokenConfig(
        (6, 4), 10, hidden=8, upsample=False, fusions=0, out_size=2, sampling_ratio=3, place_hidden=5, token_width=7
    ),
    "mask_tokens": MaskTokensConfig((6, 4, 9), 10, hidden=8, mask_size=5),
    "sampled_token": SampledTokenConfig((6,), 10, num_points=20, kept=(9, 4), neighbours=(6, 5)),
    "sampled_token, max": SampledTokenConfig((6,), 10, num_points=16, kept=(5,), neighbours=(3,), pool="max"),
}
# Sides of maps by how many of them a config reads.
SIZES = {3: [(4, 6), (4, 6), (4, 6)], 2: [(8, 10), (4, 5)], 1: [(5, 7)]}


def inputs(config, seed=0):
    random = np.random.default_rng(seed)
    sizes = SIZES[len(config.in_widths)] if config.kind != "mask_tokens" else [(8, 12), (4, 6), (2, 3)]
    levels = [
        random.normal(size=(2, *size, width)).astype(np.float32)
        for size, width in zip(sizes, config.in_widths, strict=True)
    ]
    if config.takes == "boxes":
        low = random.uniform(0.05, 0.45, (2, 3, 2))
        return levels, np.concatenate([low, low + random.uniform(0.1, 0.5, (2, 3, 2))], axis=-1).astype(np.float32)
    # Powers of two, so that distances of points are exact and ties fall the same way everywhere.
    return levels, (random.uniform(size=(2, 3, 16, 8)) > 0.6).astype(np.uint8)


def params_of(config, levels, regions):
    shapes = nn.unbox(jax.eval_shape(REGIONS[type(config)](config).init, jax.random.key(0), levels, regions)["params"])
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(0.1, 0.4, leaf.shape).astype(np.float32), shapes)


def linear(params, x, act=False):
    y = x @ torch.tensor(params["kernel"]) + torch.tensor(params["bias"])
    return y.relu() if act else y


def conv(params, x):
    """x [B, C, h, w]; zeros around, so that the size stays."""
    bias = torch.tensor(params["bias"]) if "bias" in params else None
    kernel = torch.tensor(params["kernel"]).permute(3, 2, 0, 1)
    return F.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2)


def slow_roi(x, box, cells, ratio):
    """x [C, h, w], a box inside the map as shares -> [C, cells, cells], by torch's own sampling."""
    x1, y1, x2, y2 = map(float, box)
    share = (torch.arange(cells * ratio) + 0.5) / (cells * ratio)
    rows, columns = y1 + (y2 - y1) * share, x1 + (x2 - x1) * share
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1) * 2 - 1
    found = F.grid_sample(x[None], grid[None].float(), padding_mode="border", align_corners=False)
    return F.avg_pool2d(found, ratio)[0]


def reference_roi_token(config, params, levels, regions):
    levels = [torch.tensor(level).permute(0, 3, 1, 2) for level in levels]
    if config.upsample:
        for number in range(len(levels)):
            shape = [side * 2 ** (len(levels) - 1 - number) for side in levels[number].shape[-2:]]
            levels[number] = F.interpolate(levels[number], size=shape, mode="bilinear", align_corners=True)
    for number, x in enumerate(levels):
        height, width = x.shape[-2:]
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        places = torch.stack([columns, rows])[None].expand(len(x), -1, -1, -1)
        levels[number] = conv(params[f"input_{number}"], torch.cat([x, places], dim=1))
    for step in range(config.fusions):
        half, quarter = config.hidden // 2, config.hidden // 4
        norm = [torch.tensor(params[f"fusion_{step}_norm"][name]) for name in ("scale", "bias")]
        new = []
        for number, x in enumerate(levels):
            coarser, finer = levels[min(number + 1, len(levels) - 1)], levels[max(number - 1, 0)]
            parts = coarser[:, half + quarter :], finer[:, half : half + quarter]
            parts = [F.interpolate(part, size=x.shape[-2:], mode="bilinear", align_corners=True) for part in parts]
            x = conv(params[f"fusion_{step}"], torch.cat([x[:, :half], *parts], dim=1))
            new.append(F.group_norm(x, config.groups, *norm, config.norm_eps).relu())
        levels = new
    out = torch.zeros(*regions.shape[:2], 1, config.width)
    for image, region in np.ndindex(regions.shape[:2]):
        box = regions[image, region]
        total = sum(
            conv(params[f"level_{number}"], slow_roi(x[image], box, config.out_size, config.sampling_ratio)[None])
            for number, x in enumerate(levels)
        )
        kernel = torch.tensor(params["flat"]["kernel"])
        token = torch.einsum("chw,hwcd->d", total[0].relu(), kernel) + torch.tensor(params["flat"]["bias"])
        place = torch.tensor(box)
        for step in (1, 2):
            place = linear(params[f"place_{step}"], place, act=True)
            norm = [torch.tensor(params[f"place_{step}_norm"][name]) for name in ("scale", "bias")]
            place = F.layer_norm(place, place.shape, *norm, config.norm_eps)
        out[image, region, 0] = linear(params["out"], token + place)
    return out


def reference_mask_tokens(config, params, levels, regions):
    masks = torch.tensor(regions, dtype=torch.float32)
    features = 0
    for number, level in enumerate(levels):
        x = torch.tensor(level)
        kept = (F.interpolate(masks, size=x.shape[1:3], mode="bilinear") > 0).float()
        mean = torch.einsum("brhw,bhwc->brc", kept, x) / kept.sum((2, 3)).clamp(min=1)[..., None]
        features = features + linear(params[f"level_{number}"], mean)
    shape = F.interpolate(masks, size=(config.mask_size,) * 2, mode="bilinear").flatten(2)
    shape = linear(params["shape_2"], linear(params["shape_1"], shape, act=True), act=True)
    return torch.stack([linear(params["features"], features), linear(params["shape_3"], shape)], dim=2)


def reference_sampled_token(config, params, levels, regions):
    """Every region alone, by the parts that tests/nn compares with loops."""
    out = torch.zeros(*regions.shape[:2], 1, config.width)

    @jax.jit
    def merged(mask, level):
        points = points_inside(mask[None], config.num_points)
        features = features_at(level[None], points)
        for step, sizes in enumerate(zip(config.kept, config.neighbours, strict=True)):
            variables = {"params": params[f"merge_{step}"]}
            points, features = PointMerge(*sizes, config.pool).apply(variables, points, features)
        return features.reshape(-1)

    for image, region in np.ndindex(regions.shape[:2]):
        x = torch.tensor(np.asarray(merged(regions[image, region], levels[0][image])))
        out[image, region, 0] = linear(params["out"], linear(params["flat"], x))
    return out


REFERENCES = {
    "roi_token": reference_roi_token,
    "mask_tokens": reference_mask_tokens,
    "sampled_token": reference_sampled_token,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_slow_version(tools, name):
    config = CONFIGS[name]
    levels, regions = inputs(config)
    params = params_of(config, levels, regions)
    found = jax.jit(REGIONS[type(config)](config).apply)({"params": params}, levels, regions)
    assert found.shape == (2, 3, config.tokens, 10)
    tools.close(found, REFERENCES[config.kind](config, params, levels, regions))


@pytest.mark.parametrize("name", ["roi_token", "mask_tokens", "sampled_token"])
def test_gradients_and_padding(name):
    config = CONFIGS[name]
    levels, regions = inputs(config)
    params = params_of(config, levels, regions)
    # The last region is padding: a box without size, an empty mask.
    regions[:, 2] = 0
    module = REGIONS[type(config)](config)

    def loss(params, levels, regions):
        tokens = module.apply({"params": params}, levels, regions)
        return jnp.sum(jnp.sin(tokens[:, :2])) + 0.0 * jnp.sum(tokens[:, 2])

    (slopes, *maps) = jax.jit(jax.grad(loss, (0, 1)))(params, levels, regions)
    flat = {path: float(np.abs(slope).max()) for path, slope in flatten(slopes).items()}
    assert all(np.isfinite(size) for size in flat.values())
    assert [path for path, size in flat.items() if size == 0] == []
    assert all(np.isfinite(slope).all() and np.abs(slope).max() > 0 for slope in jax.tree.leaves(maps))


def test_every_region_projector_is_here():
    assert {type(config) for config in CONFIGS.values()} == set(REGIONS)
    assert len({config.kind for config in REGIONS}) == len(REGIONS)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_axes_and_bfloat16(name):
    config = CONFIGS[name]
    assert from_dict(type(config), to_dict(config)) == config
    levels, regions = inputs(config)
    boxed = jax.eval_shape(REGIONS[type(config)](config).init, jax.random.key(0), levels, regions)["params"]
    for path, box in flatten(boxed).items():
        assert len(box.names) == box.value.ndim, path
        spec(box.names)
    shapes = nn.unbox(boxed)
    module = REGIONS[type(config)](config, jnp.bfloat16)
    half = jax.eval_shape(lambda params: module.apply({"params": params}, levels, regions), shapes)
    assert half.dtype == jnp.bfloat16 and half.shape == (2, 3, config.tokens, 10)


def test_drawn_points_differ_from_even_ones():
    config = CONFIGS["sampled_token"]
    levels, regions = inputs(config)
    params = params_of(config, levels, regions)
    run = jax.jit(REGIONS[type(config)](config).apply)
    first, again, other = (run({"params": params}, levels, regions, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.asarray(first) - np.asarray(other)).max() > 1e-3


def test_what_does_not_fit_is_named():
    for config, changes, message in [
        ("roi_token", dict(in_widths=()), "roi_token.in_widths must name"),
        ("roi_token", dict(groups=3), "hidden 8 is not a multiple of groups 3"),
        ("roi_token", dict(fusions=-1), "fusions must be at least 0, got -1"),
        ("mask_tokens", dict(in_widths=()), "mask_tokens.in_widths must name"),
        ("mask_tokens", dict(mask_size=0), "mask_size must be at least 1, got 0"),
        ("sampled_token", dict(in_widths=(6, 6)), "reads one map, in_widths names 2"),
        ("sampled_token", dict(pool="sum"), "'sum' is not one of 'mean', 'max'"),
        ("sampled_token", dict(kept=(9,)), r"kept \(9,\) and neighbours \(6, 5\) must be as many"),
        ("sampled_token", dict(kept=(21, 4)), "of 20 points, 21 cannot be kept with 6 neighbours"),
        ("sampled_token", dict(neighbours=(6, 10)), "of 9 points, 4 cannot be kept with 10 neighbours"),
    ]:
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(CONFIGS[config], **changes)
    for name in ("roi_token", "mask_tokens", "sampled_token"):
        config = CONFIGS[name]
        levels, regions = inputs(config)
        make = lambda levels, regions, config=config: jax.eval_shape(
            REGIONS[type(config)](config).init, jax.random.key(0), levels, regions
        )
        with pytest.raises(ValueError, match=f"{name}: maps are .*; wanted"):
            make([level[..., 1:] for level in levels], regions)
        with pytest.raises(ValueError, match=f"{name}: regions are .*, of maps"):
            make(levels, regions[:1])
