"""Images in tiles equal to transformers' processors, and what their configs say."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from mmjax.data.image import ImageError
from mmjax.data.tiles import TilesProcessor, fitted

PINPOINTS = [[30, 60], [60, 30], [60, 60], [90, 30]]
CASES = {
    "next": (
        LlavaNextImageProcessorPil,
        dict(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}, image_grid_pinpoints=PINPOINTS),
    ),
    "onevision": (
        LlavaOnevisionImageProcessorPil,
        dict(size={"height": 30, "width": 30}, image_mean=[0.5] * 3, image_std=[0.4] * 3)
        | dict(image_grid_pinpoints=PINPOINTS),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [(40, 70), (33, 21), (200, 47), (61, 59), (5, 3)])
def test_tiles_equal_transformers(name, size):
    cls, options = CASES[name]
    reference = cls(**options)
    recipe = TilesProcessor.from_hf(json.loads(reference.to_json_string()))
    image = Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), np.uint8))
    theirs = reference(image, return_tensors="np")
    mine = recipe(image)
    np.testing.assert_allclose(mine.transpose(0, 3, 1, 2), theirs["pixel_values"][0], atol=1e-5)
    assert recipe.size_of(recipe.open(image)) == (None, tuple(theirs["image_sizes"][0]))
    assert TilesProcessor.from_hf(json.loads(json.dumps(recipe.to_hf()))) == recipe
    again = cls(**{key: value for key, value in recipe.to_hf().items() if key != "image_processor_type"})
    np.testing.assert_array_equal(again(image, return_tensors="np")["pixel_values"], theirs["pixel_values"])


def test_defaults_and_errors():
    recipe = TilesProcessor.from_hf({"image_processor_type": "LlavaOnevisionImageProcessor"})
    assert recipe.tile_size == 384 and len(recipe.resolutions) == 36
    assert TilesProcessor.from_hf({"image_processor_type": "LlavaNextImageProcessorFast"}).tile_size == 224
    with pytest.raises(ImageError, match="SiglipImageProcessor"):
        TilesProcessor.from_hf({"image_processor_type": "SiglipImageProcessor"})
    with pytest.raises(ImageError, match="at least one"):
        TilesProcessor.from_hf({"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": []})
    assert fitted((100, 50), (30, 60)) == (30, 15)
    assert fitted((10, 31), (30, 60)) == (20, 60)
