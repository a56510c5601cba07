"""What transformers' classes do not say of the Qwen-VL towers: where patches lie, who sees whom, items in a row."""

import dataclasses

import jax
import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.dual import Tower
from mmjax.encoders.packed import block_places
from mmjax.encoders.qwen2_vision import Qwen2Vision, Qwen2VisionConfig

CONFIG = Qwen2VisionConfig(
    12, 2, 3, 10, patch_size=2, temporal_patch_size=3, gated=True, norm="rms", activation="silu", window=4
)
GRID = np.array([[[1, 4, 6], [3, 2, 4]], [[2, 8, 2], [0, 0, 0]]])
SEGMENTS = np.array([[1] * 24 + [2] * 24, [1] * 32 + [0] * 16], np.int32)


def patches(seed=0):
    return np.random.default_rng(seed).normal(size=(2, 48, CONFIG.patch_width)).astype(np.float32)


def test_places_of_patches():
    row, column, rows, columns, start = (np.asarray(x) for x in block_places(SEGMENTS, GRID, 2))
    for batch, items in enumerate(GRID):
        at = 0
        for time, height, width in items:
            for _ in range(time):
                squares = np.indices((height // 2, width // 2, 2, 2))
                wanted = (2 * squares[0] + squares[2]).ravel(), (2 * squares[1] + squares[3]).ravel()
                here = slice(at, at + height * width)
                np.testing.assert_array_equal(row[batch, here], wanted[0])
                np.testing.assert_array_equal(column[batch, here], wanted[1])
                sizes = [set(x[batch, here].tolist()) for x in (rows, columns, start)]
                assert sizes == [{height}, {width}, {at}]
                at += height * width
    assert not row[1, 32:].any() and not column[1, 32:].any()


@pytest.mark.slow
def test_who_sees_whom():
    """A change of one patch moves its window alone; with a full layer, its frame alone."""
    params = jax.jit(Tower(CONFIG).init)(jax.random.key(0))
    values = patches()
    changed = values.copy()
    changed[0, 2] += 1  # in the first window of 2 x 2 squares, of the 2 x 3 that the first item has
    changed[1, 20] += 1  # in the second frame, its first two squares of four
    near = [[*range(8), *range(12, 20)], range(16, 24)]
    for full, wanted in ((), near), ((1,), [range(24), range(16, 32)]):
        run = jax.jit(Qwen2Vision(dataclasses.replace(CONFIG, full_layers=full)).apply)
        one, other = (run({"params": params}, Media(x, SEGMENTS, GRID)).values for x in (values, changed))
        moved = (np.abs(np.asarray(one) - other).max(axis=-1) > 0) & (SEGMENTS > 0)
        assert [np.flatnonzero(row).tolist() for row in moved] == [list(places) for places in wanted]


@pytest.mark.slow
def test_items_in_rows():
    """An item in a row with others is what it is alone; blocks may be stacked or one tree a layer."""
    config = dataclasses.replace(CONFIG, full_layers=(0,))
    params = jax.jit(Tower(config).init)(jax.random.key(1))
    values = patches(1)
    out = jax.jit(Qwen2Vision(config).apply)({"params": params}, Media(values, SEGMENTS, GRID))
    assert out.stage == "encoded" and out.values.shape == (2, 48, 12)
    layers = tuple(jax.tree.map(lambda leaf: leaf[i], params["blocks"]) for i in range(2))  # noqa: B023
    run = jax.jit(lambda *given: Qwen2Vision(config).apply(*given, method="run"))
    alone = run({"params": {**params, "blocks": layers}}, values[:1, 24:], np.ones((1, 24), bool), GRID[:1, 1])
    np.testing.assert_allclose(alone["last_hidden_state"][0], out.values[0, 24:], atol=1e-5)
    assert config.num_tokens((3, 2, 4)) == 24 and config.num_tokens() == config.item_shape[0] == 4


def test_bad_options_and_inputs():
    for change, words in (
        ({"activation": "gelo"}, "qwen2_vision.activation"),
        ({"norm": "batch"}, "qwen2_vision.norm"),
        ({"num_heads": 2}, "width 12 over num_heads 2 is not a multiple of 4"),
        ({"merge_size": 0}, "merge_size must be at least 1, got 0"),
        ({"window": 3}, "window 3 is not a positive multiple of merge_size 2"),
        ({"full_layers": (2,)}, "names layer 2; there are 2 layers"),
        ({"window": None, "full_layers": (0,)}, "window is None"),
        ({"position_grid": 0}, "position_grid must be at least 1 or None, got 0"),
        ({"feature_layers": ()}, "feature_layers must name at least one"),
        ({"feature_layers": (3,)}, "feature_layers: 3 is not among the 3 hidden states"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(CONFIG, **change)
    with pytest.raises(ConfigError, match="a frame of 3 x 4 patches"):
        CONFIG.num_tokens((1, 3, 4))
    params = Tower(CONFIG).param_shapes()
    for media, words in (
        (Media(patches()), "need segment_ids and grid"),
        (Media(patches()[..., 1:], SEGMENTS, GRID), "patches have 35 numbers each; the encoder takes 36"),
    ):
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(Qwen2Vision(CONFIG).apply, {"params": params}, media)
