"""The attention mask, distances and windows against loops over every pair of tokens."""

import numpy as np
import pytest

from mmjax.data.contracts import TextStream
from mmjax.nn.masks import attention_mask, distances, windowed


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


def far(mask):
    """How many tokens before each query stands each key that it sees: by counting the seen ones between."""
    out = np.zeros(mask.shape, int)
    for b, i, j in np.argwhere(mask):
        out[b, i, j] = mask[b, i, j : i + 1].sum() - 1 if mask.shape[1] == mask.shape[2] else mask[b, i, j:].sum() - 1
    return out


@pytest.mark.parametrize("seed", range(3))
def test_distances_and_windows_in_whole_texts(seed):
    rng = np.random.default_rng(seed)
    segment = np.sort(rng.integers(0, 3, (3, 9)), axis=1)
    group = np.sort(rng.integers(0, 3, (3, 9)), axis=1)
    for text in (TextStream(segment, segment, segment), TextStream(group, group, group + 1, attend_group=group)):
        mask = np.asarray(attention_mask(text))
        np.testing.assert_array_equal(np.asarray(distances(mask))[mask], far(mask)[mask])
        np.testing.assert_array_equal(windowed(mask, 3), mask & (far(mask) < 3))


def test_distances_and_windows_in_a_cache_with_gaps():
    # Two texts, padded on the left and on the right, and new tokens in slots 7 and 8; the newest is the query.
    held = np.array([[0, 0, 1, 1, 1, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0, 1, 1, 0]], bool)
    mask = held[:, None]
    np.testing.assert_array_equal(np.asarray(distances(mask))[mask], far(mask)[mask])
    expected = [[0, 0, 0, 0, 1, 1, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0, 0, 1, 1, 0]]
    np.testing.assert_array_equal(windowed(mask, 4)[:, 0], np.array(expected, bool))


def test_windows_of_tokens_that_see_each_other():
    """Of a prefix of five tokens behind one of padding, each sees those in reach and all later ones; or all."""
    segment = np.array([[0, 1, 1, 1, 1, 1, 1, 1, 1]])
    group = np.array([[0, 1, 1, 1, 1, 1, 0, 0, 0]])
    mask = np.asarray(attention_mask(TextStream(segment, segment, segment, bidirectional_group=group)))
    near, wide = windowed(mask, 2), windowed(mask, 2, pairs=False)
    for query in range(1, 9):
        for key in range(1, 9):
            both = query <= 5 and key <= 5
            assert near[0, query, key] == ((key <= query or both) and key > query - 2)
            assert wide[0, query, key] == (both or query - 2 < key <= query)
    np.testing.assert_array_equal(windowed(mask[:, 4:5], 2, pairs=False), windowed(mask[:, 4:5], 2))
