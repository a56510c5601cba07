"""Depth maps against a loop over points, pixels and views."""

import math

import numpy as np
import pytest

from mmjax.data.depth_projection import SIX_VIEWS, DepthProjection
from mmjax.data.image import ImageProcessor
from mmjax.data.point_files import PointError
from mmjax.data.points import to_unit_sphere

SIZE = 13


def points(number=40, seed=0):
    return to_unit_sphere(np.random.default_rng(seed).normal(size=(number, 3)))


def slow(recipe, cloud):
    size, views = recipe.image_size, []
    for turn, tilt in recipe.views:
        turn, tilt = math.radians(turn), math.radians(tilt)
        sharp = np.zeros((size, size))
        for x, y, z in cloud.astype(np.float64):
            x, z = x * math.cos(turn) + z * math.sin(turn), -x * math.sin(turn) + z * math.cos(turn)
            y, z = y * math.cos(tilt) - z * math.sin(tilt), y * math.sin(tilt) + z * math.cos(tilt)
            zoom = 1.0
            if recipe.distance is not None:
                # The eye sees half the sphere's width under asin(1 / distance).
                zoom = 1 / math.tan(math.asin(1 / recipe.distance)) / (recipe.distance - z)
            column = round((x * zoom + 1) / 2 * (size - 1))
            row = size - 1 - round((y * zoom + 1) / 2 * (size - 1))
            sharp[row, column] = max(sharp[row, column], recipe.far + (1 - recipe.far) * (z + 1) / 2)
        s, dense = recipe.spread, np.zeros_like(sharp)
        for row in range(size):
            for column in range(size):
                near = sharp[max(0, row - s) : row + s + 1, max(0, column - s) : column + s + 1]
                dense[row, column] = near.max()
        if recipe.smoothing:
            reach, smooth = math.ceil(3 * recipe.smoothing), np.zeros_like(dense)
            line = [math.exp(-0.5 * (at / recipe.smoothing) ** 2) for at in range(-reach, reach + 1)]
            for row in range(size):
                for column in range(size):
                    for i, down in enumerate(range(row - reach, row + reach + 1)):
                        for j, right in enumerate(range(column - reach, column + reach + 1)):
                            if 0 <= down < size and 0 <= right < size:
                                smooth[row, column] += line[i] * line[j] / sum(line) ** 2 * dense[down, right]
            dense = smooth
        views.append(dense)
    return np.array(views)


@pytest.mark.parametrize(
    "options",
    [{}, {"distance": None, "spread": 0}, {"smoothing": 0.7, "spread": 2, "views": ((30.0, -20.0),), "distance": 1.5}],
    ids=["plain", "no perspective", "dense"],
)
def test_against_the_loop(options):
    recipe = DepthProjection(SIZE, **options)
    out = recipe(points())
    assert out.shape == (len(recipe.views), *recipe.item_shape) and out.dtype == np.float32
    expected = slow(recipe, points())
    for channel in range(3):
        np.testing.assert_allclose(out[..., channel], expected, atol=1e-6)
    assert 0 <= out.min() and 0.3 < out.max() <= 1


def test_sides():
    # One point on the right side: bright from the right, dark from the left, at the picture's right from the front.
    recipe = DepthProjection(SIZE, spread=0, distance=None)
    front, one_side, back, other_side, top, bottom = recipe(np.array([[1.0, 0, 0], [0, 0, 0]]))[..., 0]
    middle = SIZE // 2
    assert front[middle, SIZE - 1] > 0 and back[middle, 0] > 0 and top[middle, SIZE - 1] > 0
    assert sorted((one_side[middle, middle], other_side[middle, middle])) == pytest.approx([0.6, 1.0])
    assert bottom[middle, SIZE - 1] > 0 and len(SIX_VIEWS) == 6


def test_padding_is_left_out_and_an_image_recipe_takes_each_view():
    cloud = points()
    padded = np.vstack([cloud, np.full((5, 3), np.nan)])
    out = DepthProjection(SIZE)(padded)
    np.testing.assert_array_equal(out, DepthProjection(SIZE)(cloud))
    recipe = ImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False)
    assert np.stack([recipe(view) for view in out]).shape == (6, 8, 8, 3)


def test_errors():
    with pytest.raises(PointError, match="a: 1 of 2 points lie outside the unit sphere"):
        DepthProjection(SIZE)(np.array([[0, 0, 0], [1, 1, 1]]), "a")
    with pytest.raises(PointError, match=r"cloud: expected points \[N, 3 or more\], got \[4\]"):
        DepthProjection(SIZE)(np.zeros(4))
    with pytest.raises(PointError, match="a: no points"):
        DepthProjection(SIZE)(np.full((4, 3), np.nan), "a")
    with pytest.raises(PointError, match="distance must be above 1"):
        DepthProjection(SIZE, distance=1.0)
