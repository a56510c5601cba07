"""Points inside regions, and Ferret's merging of neighbours, against slow versions in numpy and torch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmjax.config import ConfigError
from mmjax.nn.region_points import PointMerge, features_at, points_inside

# Sides that are powers of two, so that points and their distances are exact and equal ones are equal everywhere.
HEIGHT, WIDTH = 16, 8


def regions():
    masks = np.zeros((4, HEIGHT, WIDTH), np.uint8)
    masks[0, 3:11, 2:7] = 1
    masks[0, 5, 4] = 0
    masks[1, 9, 5] = 7
    masks[2] = np.random.default_rng(0).uniform(size=(HEIGHT, WIDTH)) > 0.8
    return masks


def pixels_of(points):
    """Points [M, 2] -> rows and columns, which must be whole numbers."""
    places = np.asarray(points) * (HEIGHT, WIDTH)
    np.testing.assert_array_equal(places, np.rint(places))
    return [tuple(map(int, place)) for place in places]


@pytest.mark.parametrize("count", [5, 30, 200])
def test_points_at_even_distances(count):
    masks = regions()
    found = jax.jit(points_inside, static_argnums=1)(masks, count)
    for mask, points in zip(masks[:3], found[:3], strict=True):
        inside = np.argwhere(mask)
        expected = [tuple(inside[place * len(inside) // count]) for place in range(count)]
        assert pixels_of(points) == expected
    np.testing.assert_array_equal(found[3], np.zeros((count, 2)))


@pytest.mark.parametrize("count", [5, 30, 200])
def test_drawn_points(count):
    masks = regions()
    draw = jax.jit(points_inside, static_argnums=1)
    found = draw(masks, count, jax.random.key(0))
    for mask, points in zip(masks[:3], found[:3], strict=True):
        inside, drawn = set(map(tuple, np.argwhere(mask))), pixels_of(points)
        assert set(drawn) <= inside
        # As many different ones as there are or as are asked for.
        assert len(set(drawn)) == min(count, len(inside))
    again, other = (draw(masks, count, jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(again, found)
    assert np.any(np.asarray(other) != found)


@pytest.mark.slow
def test_every_pixel_is_drawn_equally_often():
    masks = regions()[:1]
    draw = jax.jit(jax.vmap(lambda rng: points_inside(masks, 10, rng)[0]))
    drawn = [place for points in draw(jax.random.split(jax.random.key(2), 1000)) for place in pixels_of(points)]
    inside = np.argwhere(masks[0])
    counts = np.array([drawn.count(tuple(place)) for place in inside])
    chance = 10 / len(inside)
    assert np.abs(counts / 1000 - chance).max() < 5 * np.sqrt(chance * (1 - chance) / 1000)


@pytest.mark.parametrize("shape", [(5, 7), (1, 3), (4, 4)])
def test_features_at(shape):
    random = np.random.default_rng(3)
    maps = random.normal(size=(2, *shape, 3)).astype(np.float32)
    points = random.uniform(size=(2, 11, 2)).astype(np.float32)
    points[0, :2] = [[0, 0], [1, 1]]
    grid = torch.tensor(points[:, :, None, ::-1] * 2 - 1)
    theirs = F.grid_sample(torch.tensor(maps).permute(0, 3, 1, 2), grid, align_corners=True)
    np.testing.assert_allclose(jax.jit(features_at)(maps, points), theirs[..., 0].transpose(1, 2), atol=1e-5)


def slow_merge(params, points, features, count, neighbours, pool):
    """One region by the paper's steps: points [M, 2], features [M, C]."""
    chosen = [0]
    while len(chosen) < count:
        away = [min(((point - points[other]) ** 2).sum() for other in chosen) for point in points]
        chosen.append(int(np.argmax(away)))
    linear = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"]
    out = []
    for anchor in chosen:
        order = np.argsort(((points - points[anchor]) ** 2).sum(1), kind="stable")[:neighbours]
        middle = np.concatenate([features[anchor], points[anchor]])
        merged = []
        for other in order:
            away = np.concatenate([features[other], points[other]]) - middle
            x = np.maximum(linear("merge", np.concatenate([linear("difference", away), middle])), 0)
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
            merged.append(x * params["norm"]["scale"] + params["norm"]["bias"])
        out.append(np.mean(merged, axis=0) if pool == "mean" else np.max(merged, axis=0))
    return points[chosen], np.array(out)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_merge(pool):
    points = jax.jit(points_inside, static_argnums=1)(regions()[:3], 24)
    features = np.random.default_rng(4).normal(size=(3, 24, 5)).astype(np.float32)
    module = PointMerge(9, 6, pool)
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), points, features)["params"])
    random = np.random.default_rng(5)
    params = jax.tree.map(lambda leaf: random.normal(0.1, 0.5, leaf.shape).astype(np.float32), params)
    centers, found = jax.jit(module.apply)({"params": params}, points, features)
    assert found.shape == (3, 9, 5)
    points = np.asarray(points)
    for row in range(3):
        where, slow = slow_merge(params, points[row], features[row], 9, 6, pool)
        np.testing.assert_array_equal(centers[row], where)
        np.testing.assert_allclose(found[row], slow, atol=1e-5)


def test_errors():
    points, features = jnp.zeros((1, 4, 2)), jnp.zeros((1, 4, 3))
    with pytest.raises(ConfigError, match="'median' is not one of 'mean', 'max'"):
        PointMerge(2, 2, "median").init(jax.random.key(0), points, features)
    with pytest.raises(ValueError, match="5 points cannot be chosen from clouds of 4"):
        PointMerge(5, 2).init(jax.random.key(0), points, features)
    with pytest.raises(ValueError, match="5 neighbours"):
        PointMerge(2, 5).init(jax.random.key(0), points, features)
