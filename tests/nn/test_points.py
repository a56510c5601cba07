"""Farthest-point sampling and neighbour groups against loops in numpy."""

import jax
import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.nn.points import farthest_points, group_points, nearest_points

BATCH, NUMBER = 3, 23


def clouds(seed=0):
    return np.random.default_rng(seed).normal(size=(BATCH, NUMBER, 3)).astype(np.float32)


def slow_farthest(points, count, start):
    """One cloud [N, 3] -> indices, by the definition."""
    mean = points.astype(np.float64).mean(0)
    chosen = [0 if start == "first" else int(np.argmax(((points - mean) ** 2).sum(1)))]
    while len(chosen) < count:
        away = [min(((point - points[other]) ** 2).sum() for other in chosen) for point in points]
        chosen.append(int(np.argmax(away)))
    return chosen


def slow_nearest(points, centers, count):
    return [np.argsort(((points - center) ** 2).sum(1), kind="stable")[:count] for center in centers]


@pytest.mark.parametrize("start", ["first", "farthest"])
def test_farthest_points(start):
    points = clouds()
    found = jax.jit(farthest_points, static_argnums=(1, 2))(points, 9, start)
    np.testing.assert_array_equal(found, [slow_farthest(cloud, 9, start) for cloud in points])


def test_all_points_are_chosen_once():
    found = farthest_points(clouds(1), NUMBER)
    np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(NUMBER), (BATCH, 1)))


def test_nearest_points():
    points, centers = clouds(2), clouds(3)[:, :5]
    found = nearest_points(points, centers, 6)
    expected = [slow_nearest(cloud, middle, 6) for cloud, middle in zip(points, centers, strict=True)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("start", ["first", "farthest"])
def test_padding_changes_nothing(start):
    # The first cloud has all its points, the second lacks its last ones, the third some in the middle.
    points = clouds(4)
    mask = np.ones((BATCH, NUMBER), bool)
    mask[1, 15:], mask[2, [0, 3, 7, 8]] = False, False
    padded = np.where(mask[..., None], points, np.nan)
    found = jax.jit(group_points, static_argnums=(1, 2, 3))(padded, 7, 4, start, mask)
    for row in range(BATCH):
        kept = np.flatnonzero(mask[row])
        cloud = points[row, kept]
        chosen = slow_farthest(cloud, 7, start)
        near = np.array(slow_nearest(cloud, cloud[chosen], 4))
        np.testing.assert_array_equal(found.centers[row], cloud[chosen])
        np.testing.assert_array_equal(found.index[row], kept[near])
        np.testing.assert_allclose(found.offsets[row], cloud[near] - cloud[chosen][:, None], atol=1e-6)
        assert found.seen[row].all()


def test_clouds_of_too_few_points():
    points = clouds(5)
    mask = np.zeros((BATCH, NUMBER), bool)
    mask[:, :5] = True
    found = group_points(points, 8, 6, "first", mask)
    np.testing.assert_array_equal(found.seen, np.tile(np.arange(8) < 5, (BATCH, 1)))
    for row in range(BATCH):
        for group in found.index[row]:
            # All five, then the nearest once more.
            assert set(map(int, group)) == set(range(5)) and group[5] == group[0]


def test_errors():
    with pytest.raises(ValueError, match="24 points cannot be chosen from clouds of 23"):
        farthest_points(clouds(), 24)
    with pytest.raises(ValueError, match="0 neighbours cannot be found in clouds of 23"):
        nearest_points(clouds(), clouds(), 0)
    with pytest.raises(ConfigError, match="farthest"):
        farthest_points(clouds(), 2, "fartest")
