"""The view of the whole and its tiles, against PIL by hand."""

import numpy as np
import pytest
from PIL import Image

from mmjax.data.grid_views import GridViewsProcessor
from mmjax.data.image import ImageError
from mmjax.data.recipes import recipe_from_hf


def test_whole_and_tiles_by_hand():
    pixels = np.random.default_rng(0).integers(0, 256, (23, 41, 3), np.uint8)
    recipe = GridViewsProcessor(7, 2, 3)
    views = recipe(pixels)
    assert views.shape == recipe.item_shape == (7, 7, 7, 3) and views.dtype == np.float32
    mean, std = (np.float32(values) for values in (recipe.image.image_mean, recipe.image.image_std))

    def resized(width, height):
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        return (np.asarray(image, np.float32) / 255 - mean) / std

    np.testing.assert_allclose(views[0], resized(7, 7), atol=1e-5)
    large = resized(21, 14)
    for tile in range(6):
        row, column = divmod(tile, 3)
        part = large[7 * row : 7 * row + 7, 7 * column : 7 * column + 7]
        np.testing.assert_allclose(views[1 + tile], part, atol=1e-5)
    assert recipe.size_of(recipe.open(pixels)) == (None, (23, 41))


def test_there_and_back():
    recipe = recipe_from_hf({"views_processor_type": "GridViewsProcessor", "side": 8, "rows": 1, "columns": 2})
    assert recipe == GridViewsProcessor(8, 1, 2) and recipe_from_hf(recipe.to_hf()) == recipe
    other = GridViewsProcessor.from_hf({**recipe.to_hf(), "image_mean": [0.1, 0.2, 0.3]})
    assert other.image.image_mean == (0.1, 0.2, 0.3) and recipe_from_hf(other.to_hf()) == other
    with pytest.raises(ImageError, match="rows must be at least 1, got 0"):
        GridViewsProcessor(8, 0, 2)
    with pytest.raises(ImageError, match="views_processor_type is 'Other'"):
        GridViewsProcessor.from_hf({"views_processor_type": "Other", "side": 8, "rows": 1, "columns": 2})
