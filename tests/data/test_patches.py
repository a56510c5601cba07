"""Packed patches equal to transformers' processor, and what its configs say."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from mmjax.data.image import ImageError
from mmjax.data.patches import PatchesProcessor, pack_patches, rounded_size

CASES = {
    "size": dict(patch_size=5, temporal_patch_size=3, size={"shortest_edge": 900, "longest_edge": 4000}),
    "bounds": dict(patch_size=6, merge_size=1, min_pixels=100, max_pixels=3000, image_mean=[0.5] * 3),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [(40, 70), (33, 21), (200, 47), (61, 59), (5, 3)])
def test_patches_equal_transformers(name, size):
    reference = Qwen2VLImageProcessorPil(**CASES[name])
    recipe = PatchesProcessor.from_hf(json.loads(reference.to_json_string()))
    image = Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), np.uint8))
    theirs = reference(image, return_tensors="np")
    patches, grid = recipe.pack(image)
    assert patches.dtype == np.float32 and grid == tuple(theirs["image_grid_thw"][0])
    np.testing.assert_allclose(patches, theirs["pixel_values"], atol=1e-5)
    np.testing.assert_array_equal(recipe(image), patches)
    assert recipe.size_of(recipe.open(image)) == (grid, size) and recipe.item_shape is None
    assert PatchesProcessor.from_hf(json.loads(json.dumps(recipe.to_hf()))) == recipe
    again = Qwen2VLImageProcessorPil(**{k: v for k, v in recipe.to_hf().items() if k != "image_processor_type"})
    np.testing.assert_array_equal(again(image, return_tensors="np")["pixel_values"], theirs["pixel_values"])


def test_sizes():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 3000, (300, 2)).tolist():
        if max(height, width) <= 200 * min(height, width):
            for bounds in ((3136, 1003520), (100 * 784, 200 * 784)):
                assert rounded_size(height, width, 28, *bounds) == smart_resize(height, width, 28, *bounds)
    with pytest.raises(ImageError, match="3 x 601 pixels is more than 200 times"):
        rounded_size(3, 601, 28, 3136, 10**6)


def test_frames_of_a_video():
    """The last frame is repeated; each patch by channel, frame, row and column."""
    frames = np.random.default_rng(1).normal(size=(3, 8, 12, 3)).astype(np.float32)
    patches, grid = pack_patches(frames, 2, 2, 2)
    assert grid == (2, 4, 6) and patches.shape == (48, 24)
    for time in range(2):
        for row in range(4):
            for column in range(6):
                number = (row // 2 * 3 + column // 2) * 4 + row % 2 * 2 + column % 2
                cut = frames[[2 * time, min(2 * time + 1, 2)], 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                np.testing.assert_array_equal(patches[24 * time + number], cut.transpose(3, 0, 1, 2).ravel())
    with pytest.raises(ImageError, match="frames of 8 x 10 pixels are no whole number of squares of 4 x 4"):
        pack_patches(frames[:, :, :10], 2, 2, 2)


def test_defaults_and_errors():
    recipe = PatchesProcessor.from_hf({"image_processor_type": "Qwen2VLImageProcessorFast"})
    assert recipe == PatchesProcessor() and (recipe.min_pixels, recipe.max_pixels) == (3136, 1003520)
    whole = PatchesProcessor.from_hf(
        {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 3, "do_resize": False, "merge_size": 1}
    )
    assert whole.pack(np.zeros((6, 9, 3), np.uint8))[1] == (1, 2, 3)
    with pytest.raises(ImageError, match="CLIPImageProcessor"):
        PatchesProcessor.from_hf({"image_processor_type": "CLIPImageProcessor"})
    with pytest.raises(ImageError, match="min_pixels 5 and max_pixels 4"):
        PatchesProcessor(min_pixels=5, max_pixels=4)
    with pytest.raises(ImageError, match="merge_size must be at least 1, got 0"):
        PatchesProcessor(merge_size=0)
