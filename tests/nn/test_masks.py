"""The attention mask against a loop over every pair of tokens."""

import numpy as np
import pytest

from mmjax.data.contracts import TextStream
from mmjax.nn.masks import attention_mask


def brute_force(segment, group=None, both=None):
    out = np.zeros((*segment.shape, segment.shape[1]), bool)
    for b, row in enumerate(segment):
        for i in range(len(row)):
            for j in range(len(row)):
                seen = j <= i
                if both is not None and both[b, i] == both[b, j] and both[b, j] > 0:
                    seen = True
                if group is not None and group[b, j] not in (0, group[b, i]):
                    seen = False
                out[b, i, j] = seen and row[i] == row[j] and row[j] > 0
    return out


@pytest.mark.parametrize("seed", range(4))
def test_mask_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    shape = (3, 8)
    segment = np.sort(rng.integers(0, 3, shape), axis=1)
    group, both = rng.integers(0, 3, shape), rng.integers(0, 2, shape)
    for fields in (
        {},
        {"attend_group": group},
        {"bidirectional_group": both},
        {"attend_group": group, "bidirectional_group": both},
    ):
        text = TextStream(segment, segment, segment, **fields)
        expected = brute_force(segment, fields.get("attend_group"), fields.get("bidirectional_group"))
        np.testing.assert_array_equal(attention_mask(text), expected)
