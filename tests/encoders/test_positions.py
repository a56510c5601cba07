"""Position grids at other sizes against torch's interpolation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.encoders.packed import item_mask, packed_places
from mmjax.encoders.positions import METHODS, axis_weights, read_grid, resize_grid

# What torch has under a name; "floor" looks up single places.
INTERPOLATED = [method for method in METHODS if method != "floor"]
SIZES = [(7, 7), (4, 9), (16, 3), (1, 1), (2, 25)]


def by_torch(table, height, width, method):
    side = int(len(table) ** 0.5)
    image = torch.tensor(table).reshape(1, side, side, -1).permute(0, 3, 1, 2)
    mode, _, how = method.partition("_")
    options = {"align_corners": how == "corners", "antialias": how == "antialias"}
    out = torch.nn.functional.interpolate(image, size=(height, width), mode=mode, **options)
    return out.flatten(2)[0].T.numpy()


@pytest.mark.quick("bilinear_corners")
@pytest.mark.parametrize("method", INTERPOLATED)
def test_grids_equal_torch(method):
    table = np.random.default_rng(0).normal(size=(49, 5)).astype(np.float32)
    for height, width in SIZES:
        expected = by_torch(table, height, width, method)
        ours = resize_grid(jnp.asarray(table), height, width, method)
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        weights = axis_weights(jnp.arange(height), height, 7, method)
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(resize_grid(jnp.asarray(table), 7, 7, method), table)


@pytest.mark.parametrize("method", INTERPOLATED)
def test_one_program_reads_grids_of_all_sizes(method):
    table = np.random.default_rng(0).normal(size=(49, 5)).astype(np.float32)
    shapes = [(2, 3), (7, 1), (4, 6), (5, 5)]
    segments = np.zeros((2, 40), np.int32)
    segments[0, 1:7], segments[0, 9:16] = 1, 2
    segments[1, :24], segments[1, 24:], segments[1, 39:] = 1, 2, 0
    grid = np.array([[1, *shape] for shape in shapes]).reshape(2, 2, 3)
    grid[1, 1] = (1, 3, 5)
    places = jax.jit(packed_places)(segments, grid)
    read = jax.jit(lambda *places: read_grid(jnp.asarray(table), *places, method))(*places)
    runs = [(0, 1, (2, 3)), (0, 9, (7, 1)), (1, 0, (4, 6)), (1, 24, (3, 5))]
    for row, start, shape in runs:
        found = read[row, start : start + shape[0] * shape[1]]
        np.testing.assert_allclose(found, by_torch(table, *shape, method), atol=1e-5)


def test_floor_reads_the_place_that_a_share_falls_into():
    """By torch's bucketize, at the sizes of published towers: products of float32 fall on both sides of bounds."""
    for side in (5, 26, 27, 32, 70):
        lengths = np.repeat(np.arange(1, side + 1), side)
        index = np.tile(np.arange(side), side) % lengths
        share = torch.tensor(index, dtype=torch.float32) * (1.0 / torch.tensor(lengths))
        expected = torch.bucketize(share.clamp(max=1 - 1e-6), torch.arange(1 / side, 1.0, 1 / side), right=True)
        weights = jax.jit(axis_weights, static_argnums=(2, 3))(index, lengths, side, "floor")
        np.testing.assert_array_equal(weights.argmax(-1), expected)
        np.testing.assert_array_equal(np.unique(weights.sum(-1)), 1)


def test_frames_of_an_item_repeat_its_places():
    rows, columns, *_ = packed_places(jnp.ones((1, 12), int), jnp.array([[[2, 2, 3]]]))
    np.testing.assert_array_equal(rows[0], [0, 0, 0, 1, 1, 1] * 2)
    np.testing.assert_array_equal(columns[0], [0, 1, 2] * 4)


def test_items_see_themselves_and_padding_is_not_seen():
    mask = np.asarray(item_mask(jnp.array([[0, 1, 1, 2]])))[0]
    np.testing.assert_array_equal(mask, [[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
