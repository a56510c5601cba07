"""How tiles are put together, beside slow versions with arrays of numbers."""

import numpy as np
import pytest
import torch

from mmjax.config import ConfigError
from mmjax.projectors.linear import LinearProjectorConfig
from mmjax.projectors.tiles import NEWLINE, TilesConfig, bilinear, unpadded

EACH = LinearProjectorConfig(4, 6)


def tiles(**options):
    return TilesConfig(EACH, 10, 3, ((10, 20), (20, 10), (20, 20), (30, 10)), **options)


def test_the_resolution_keeps_most_pixels_then_wastes_least():
    config = tiles()
    assert config.resolution((9, 18)) == (10, 20)
    assert config.resolution((40, 40)) == (20, 20)
    assert config.resolution((300, 90)) == (30, 10)
    # Kept whole by several: the smallest of them.
    assert config.resolution((5, 5)) == (10, 20)
    assert config.num_tiles((300, 90)) == 4
    with pytest.raises(ValueError, match="0 x 3"):
        config.resolution((0, 3))


def test_an_arrangement_by_hand():
    """(7, 40) is fitted into 10 x 20 with a border above and below: of 3 rows of 6 features one goes on each side."""
    order, weights = tiles().arrangement(None, (7, 40))
    assert weights is None
    rows = [9 + np.r_[3 * r : 3 * r + 3, 9 + 3 * r : 12 + 3 * r] for r in range(3)]
    expected = [*range(9), *rows[1], NEWLINE]
    assert order[:, 0].tolist() == expected
    assert tiles(newline=False).arrangement(None, (10, 20))[0][:, 0].tolist() == [*range(9), *np.concatenate(rows)]
    assert tiles().arrangement((1, 3, 3), None)[0][:, 0].tolist() == [*range(9), NEWLINE]
    with pytest.raises(ValueError, match="original_size"):
        tiles().arrangement()


@pytest.mark.parametrize("shape", [(4, 7, 3, 5), (9, 9, 2, 4), (5, 6, 5, 6), (3, 3, 2, 2)])
def test_bilinear_equals_torch(shape):
    height, width, *new = shape
    places = np.arange(height * width).reshape(height, width)
    values = np.random.default_rng(0).normal(size=(height * width, 2))
    found, weights = bilinear(places, *new)
    mine = (values[found] * weights[..., None]).sum(axis=2)
    image = torch.tensor(values.reshape(height, width, 2)).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(image, new, mode="bilinear")[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_borders_are_left_out_on_both_sides():
    places = np.arange(12 * 8).reshape(12, 8)
    np.testing.assert_array_equal(unpadded(places, (100, 200)), places[4:8])
    np.testing.assert_array_equal(unpadded(places, (200, 50)), places[:, 2:6])
    np.testing.assert_array_equal(unpadded(places, (150, 100)), places)


def test_options_that_cannot_work_are_named():
    with pytest.raises(ConfigError, match="resolution 10 x 15 is no multiple of tile_size 10"):
        TilesConfig(EACH, 10, 3, ((10, 15),))
    with pytest.raises(ConfigError, match="at least one"):
        TilesConfig(EACH, 10, 3)
    with pytest.raises(ConfigError, match="frames"):
        tiles(frames="mean")
    with pytest.raises(ConfigError, match="no grid of 3 x 3"):
        tiles().num_tokens(10)
    assert tiles(frames="average_first").num_tokens(9) == 1
    with pytest.raises(ValueError, match="how many frames"):
        tiles(frames="keep").arrangement()
