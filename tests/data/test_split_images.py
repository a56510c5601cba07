"""Tiles and patches of images of many shapes: counts and pixels are those of transformers' image processors."""

import numpy as np
import pytest
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from mmjax.data.image import ImageError
from mmjax.data.own_shape import OwnShapeProcessor
from mmjax.data.split import SplitProcessor, nearest_arrangement

SIZES = [(31, 60), (60, 31), (20, 20), (7, 90), (90, 7), (64, 48), (1, 1), (33, 32), (100, 101)]


def picture(height, width):
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("least, most", [(1, 12), (1, 4), (2, 6), (1, 1)])
def test_arrangements(size, least, most):
    theirs = GotOcr2ImageProcessorPil(
        size={"height": 16, "width": 12}, min_patches=least, max_patches=most, crop_to_patches=True
    )
    mine = SplitProcessor.from_hf(theirs.to_dict())
    image, wanted = picture(*size), theirs([picture(*size)], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(np.stack(mine(image)).transpose(0, 3, 1, 2), wanted, atol=1e-5)
    assert len(mine.source_of(image).sizes) == len(wanted)
    again = SplitProcessor.from_hf(mine.to_hf())
    assert again == mine


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("split", [True, False])
def test_tiles_with_rows_and_columns(size, split):
    theirs = Idefics3ImageProcessorPil(
        size={"longest_edge": 48}, max_image_size={"longest_edge": 16}, do_image_splitting=split
    )
    mine, image = SplitProcessor.from_hf(theirs.to_dict()), picture(*size)
    found = theirs([[image]], return_tensors="np", return_row_col_info=True)
    source = mine.source_of(image)
    assert (source.rows, source.columns) == (found["rows"][0][0], found["cols"][0][0])
    np.testing.assert_allclose(np.stack(mine(image)).transpose(0, 3, 1, 2), found["pixel_values"][0], atol=1e-5)
    assert SplitProcessor.from_hf(mine.to_hf()) == mine


@pytest.mark.parametrize("size", SIZES)
def test_patches_of_their_own_shape(size):
    image = picture(*size)
    pixtral = PixtralImageProcessorPil(size={"longest_edge": 40}, patch_size=8)
    mine = OwnShapeProcessor.from_hf({**pixtral.to_dict(), "patch_size": 4, "spatial_merge_size": 2})
    found = pixtral([image], return_tensors="np")
    _, rows, columns = mine.source_of(image).sizes[0].grid
    assert [rows * 4, columns * 4] == np.ravel(found["image_sizes"]).tolist()
    squares = mine(image)[0].reshape(rows // 2, columns // 2, 2, 2, 3, 4, 4)
    whole = squares.transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * 4, columns * 4)
    np.testing.assert_allclose(whole, found["pixel_values"][0], atol=1e-5)
    assert OwnShapeProcessor.from_hf(mine.to_hf()) == mine

    if min(size) < 2:
        return
    idefics = Idefics2ImageProcessorPil(size={"shortest_edge": 12, "longest_edge": 40}, do_image_splitting=True)
    mine = OwnShapeProcessor.from_hf({**idefics.to_dict(), "mmjax": {"patch_size": 4}})
    found = idefics([[image]], return_tensors="np")
    images, masks = found["pixel_values"][0], found["pixel_attention_mask"][0]
    for patches, its, theirs, mask in zip(mine(image), mine.source_of(image).sizes, images, masks, strict=True):
        _, rows, columns = its.grid
        assert (rows, columns) == (mask[:, 0].sum() // 4, mask[0].sum() // 4)
        whole = patches.reshape(rows, columns, 4, 4, 3).transpose(4, 0, 2, 1, 3).reshape(3, rows * 4, columns * 4)
        np.testing.assert_allclose(whole, theirs[:, : rows * 4, : columns * 4], atol=1e-5)
    assert OwnShapeProcessor.from_hf(mine.to_hf()) == mine


def test_refused():
    with pytest.raises(ImageError, match="'CLIPImageProcessor' does not split images"):
        SplitProcessor.from_hf({"image_processor_type": "CLIPImageProcessor"})
    with pytest.raises(ImageError, match="wanted height and width"):
        SplitProcessor.from_hf({"image_processor_type": "GotOcr2ImageProcessor", "size": {"shortest_edge": 9}})
    with pytest.raises(ImageError, match="Pixtral: size is .*; wanted longest_edge"):
        OwnShapeProcessor.from_hf({"image_processor_type": "PixtralImageProcessor", "size": {"height": 9, "width": 9}})
    assert nearest_arrangement(10, 40, (10, 10), 1, 6) == (1, 4)
