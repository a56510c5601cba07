"""Positions of three axes, from the rule that Qwen2-VL's paper gives."""

import numpy as np
import pytest

from mmjax.data.positions import Run, axis_positions


def test_text_image_text():
    valid = np.array([0, 0, 1, 1, *[1] * 6, 1, 1, 0], bool)
    positions = axis_positions(valid, [Run(4, (1, 2, 3))])
    assert positions.dtype == np.int32 and not positions[[0, 1, 12]].any()
    assert positions[[2, 3, 10, 11]].tolist() == [[place] * 3 for place in (0, 1, 5, 6)]
    assert positions[4:10].tolist() == [[2, 2 + row, 2 + column] for row in (0, 1) for column in (0, 1, 2)]


def test_items_one_after_the_other():
    """Text goes on behind the larger side, even where time has gone further."""
    positions = axis_positions(np.ones(12, bool), [Run(0, (3, 1, 2), 2.5), Run(6, (1, 2, 1)), Run(9, (2, 1, 1))])
    assert positions[:6, 0].tolist() == [0, 0, 2, 2, 5, 5] and positions[:6, 2].tolist() == [0, 1] * 3
    assert positions[6:8].tolist() == [[2, 2, 2], [2, 3, 2]] and positions[8].tolist() == [4] * 3
    assert positions[9:].tolist() == [[5, 5, 5], [6, 5, 5], [6, 6, 6]]


def test_time_is_rounded_down_in_single_precision():
    """Five times 4 * 0.7 is 14 in float32, and less than that in float64 when 0.7 came as float32."""
    step = 4 * float(np.float32(0.7))
    assert int(5 * step) == 13
    assert axis_positions(np.ones(6, bool), [Run(0, (6, 1, 1), step)])[:, 0].tolist() == [0, 2, 5, 8, 11, 14]


def test_items_that_do_not_fit():
    for runs in ([Run(3, (1, 2, 2))], [Run(0, (1, 2, 2)), Run(3, (1, 1, 1))]):
        with pytest.raises(ValueError, match="does not fit"):
            axis_positions(np.ones(6, bool), runs)
