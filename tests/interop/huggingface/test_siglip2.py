"""SigLIP 2's tower for images of any shape, against transformers, and its packed form against one image a row."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.vit import ViT
from mmjax.interop.huggingface import load, save

SHAPES = [(3, 5), (2, 2), (1, 11), (4, 3)]
LENGTH = 17
SIZES = dict(hidden_size=30, intermediate_size=44, num_hidden_layers=2, num_attention_heads=5, patch_size=3)


def tower(**options):
    return transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**SIZES, num_patches=16, **options))


def inputs():
    rng = np.random.default_rng(3)
    pixels = rng.normal(size=(len(SHAPES), LENGTH, 27)).astype(np.float32)
    mask = np.arange(LENGTH) < np.array([[rows * columns] for rows, columns in SHAPES])
    return np.where(mask[..., None], pixels, 0), mask.astype(np.int32), np.array(SHAPES)


@pytest.mark.quick("options0")
@pytest.mark.parametrize("options", [{}, {"vision_use_head": False, "layer_norm_eps": 1e-3}])
def test_tower(weights, parity, options):
    model = weights.randomised(tower(**options))
    loaded = weights.loaded(model)
    again = weights.again(loaded, type(model))
    names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    given = dict(zip(names, inputs(), strict=True))
    with torch.no_grad():
        theirs, repeated = (m(**{k: torch.tensor(v) for k, v in given.items()}) for m in (model, again))
    assert torch.equal(theirs.last_hidden_state, repeated.last_hidden_state)
    held = weights.model()
    mine = held(**given)
    parity.close(mine.last_hidden_state, theirs.last_hidden_state)
    if options:
        assert mine.pooler_output is None
    else:
        parity.close(mine.pooler_output, theirs.pooler_output)
        half = dataclasses.replace(held, dtype="bfloat16")(**given).pooler_output
        assert half.dtype == jnp.bfloat16
        np.testing.assert_allclose(half.astype(jnp.float32), mine.pooler_output, atol=0.1)
    with pytest.raises(ValueError, match="need pixel_attention_mask and spatial_shapes"):
        held(pixel_values=given["pixel_values"])


def test_images_packed_into_rows_do_not_see_each_other(weights, parity):
    model = weights.randomised(tower())
    loaded = weights.loaded(model)
    pixels, mask, shapes = inputs()
    with torch.no_grad():
        states = model(
            torch.tensor(pixels), torch.tensor(mask), torch.tensor(shapes), output_hidden_states=True
        ).hidden_states[-1]
    # Two images a row: the second row starts with padding, the first has some between its images.
    values, segments = np.zeros((2, 31, 27), np.float32), np.zeros((2, 31), np.int32)
    starts = {0: (0, 0), 1: (0, 17), 2: (1, 5), 3: (1, 16)}
    for image, (row, start) in starts.items():
        count = mask[image].sum()
        values[row, start : start + count] = pixels[image, :count]
        segments[row, start : start + count] = image % 2 + 1
    grid = np.concatenate([np.ones((4, 1), int), shapes], 1).reshape(2, 2, 3)
    module = ViT(loaded.config)
    media = Media(values, segments, grid)
    out = module.apply({"params": loaded.params}, media)
    assert out.stage == "encoded" and out.segment_ids is not None
    for image, (row, start) in starts.items():
        count = mask[image].sum()
        assert loaded.config.num_tokens((1, *shapes[image])) == count
        parity.close(out.values[row, start : start + count], states[image, :count])
    for broken, words in (
        (media.replace(grid=None), "need segment_ids and grid"),
        (media.replace(values=values[..., :-1]), "27 numbers each.*these have 26"),
    ):
        with pytest.raises(ValueError, match=words):
            module.apply({"params": loaded.params}, broken)


@pytest.mark.slow
def test_images_of_one_size_are_patches_of_one_shape(weights, parity):
    """Images [B, I, H, W, 3] through the same tower: what the processor's patches of them give."""
    model = weights.randomised(tower())
    loaded = weights.loaded(model)
    images = np.random.default_rng(1).normal(size=(2, 6, 15, 3)).astype(np.float32)
    patches = images.reshape(2, 2, 3, 5, 3, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 10, 27)
    with torch.no_grad():
        theirs = model(torch.tensor(patches), torch.ones(2, 10), torch.tensor([[2, 5]] * 2))
    mine = ViT(loaded.config).apply({"params": loaded.params}, images, method="run")
    parity.close(mine["pooled"], theirs.pooler_output)


def test_what_does_not_fit_is_named(weights):
    loaded = weights.loaded(weights.randomised(tower()))
    path = weights.place / "theirs" / "config.json"
    path.write_text(path.read_text().replace('"num_patches": 16', '"num_patches": 15'))
    with pytest.raises(ConfigError, match="num_patches 15 is no square number"):
        load(weights.place / "theirs")
    with pytest.raises(ConfigError, match="pre_norm=True"):
        save(weights.place / "x", dataclasses.replace(loaded.config, pre_norm=True), loaded.params)
