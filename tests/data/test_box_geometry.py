"""Boxes moved with their image, seen in the image's own pixels; overlaps against counted pixels."""

import numpy as np
import pytest
from PIL import Image

from mmjax.data.box_geometry import (
    box_accuracy,
    expand_to_square,
    from_square,
    pairwise_iou,
    resize_boxes,
    resize_together,
    square_offset,
    to_square,
)
from mmjax.data.image import ImageProcessor


def painted(size, box):
    """A blue image with a red box."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[..., 2] = 255
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = (255, 0, 0)
    return Image.fromarray(pixels)


def seen(image):
    """The box of what is rather red than not."""
    rows, columns = np.nonzero(np.asarray(image)[..., 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("size", [(40, 61), (61, 40), (33, 33), (1, 4)])
def test_square(size):
    box = [0, 0, min(5, size[1]), size[0]]
    image = painted(size, box)
    color = (7, 60, 90)
    square, boxes = expand_to_square(image, [box], color)
    assert square.size == (max(size), max(size)) and boxes.shape == (1, 4)
    np.testing.assert_array_equal(boxes[0], seen(square))
    np.testing.assert_array_equal(from_square(boxes, size), [box])
    # The recipe that prepares pixels for models pads the same way.
    recipe = ImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False,
                            pad_to_square=True, image_mean=tuple((value + 0.5) / 255 for value in color))  # fmt: skip
    np.testing.assert_array_equal(np.asarray(square), recipe(image))


def test_square_is_cut_to_the_image():
    assert square_offset((40, 61)) == (10, 0) and square_offset((61, 40)) == (0, 10)
    np.testing.assert_array_equal(from_square([[0, 0, 61, 61]], (40, 61)), [[0, 0, 61, 40]])
    np.testing.assert_array_equal(to_square([3, 4, 5, 6], (61, 40)), [[13, 4, 15, 6]])


def test_resize():
    box = [6, 12, 30, 36]
    image, boxes = resize_together(painted((60, 42), box), [box], (120, 14))
    assert image.size == (14, 120)
    np.testing.assert_allclose(boxes, [[2, 24, 10, 72]])
    np.testing.assert_array_equal(boxes[0], seen(image))
    np.testing.assert_allclose(resize_boxes(boxes, (120, 14), (60, 42)), [box])


def test_iou_counts_pixels():
    random = np.random.default_rng(0)
    low = random.integers(0, 12, (9, 2))
    boxes = np.concatenate([low, low + random.integers(0, 9, (9, 2))], axis=1)

    def pixels(box):
        mask = np.zeros((24, 24), bool)
        mask[box[1] : box[3], box[0] : box[2]] = True
        return mask

    found = pairwise_iou(boxes[:4], boxes)
    assert found.shape == (4, 9)
    for row, mine in enumerate(boxes[:4]):
        for column, other in enumerate(boxes):
            both, either = pixels(mine) & pixels(other), pixels(mine) | pixels(other)
            np.testing.assert_allclose(found[row, column], both.sum() / max(either.sum(), 1))
    assert pairwise_iou([2, 2, 2, 2], [2, 2, 2, 2]) == 0


def test_accuracy():
    truth = [[0, 0, 10, 10]] * 4
    # Overlaps of 1, 1/2 exactly, less, and no box at all.
    predicted = [[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.9], None]
    assert box_accuracy(predicted, truth) == 0.5
    assert box_accuracy(predicted, truth, threshold=0.75) == 0.25
    with pytest.raises(ValueError, match="3 predicted boxes for 4 true ones"):
        box_accuracy(predicted[:3], truth)
    with pytest.raises(ValueError, match="0 predicted"):
        box_accuracy([], [])
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        pairwise_iou(np.zeros((2, 3)), np.zeros((1, 4)))
