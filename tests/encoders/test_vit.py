"""The vision transformer's options that no other library's class has: patches dropped in training, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.dual import Tower
from mmjax.encoders.vit import ViT, ViTConfig

CONFIG = ViTConfig(20, 4, 12, 2, 3, 16, num_registers=2, feature_layers=(0,), keep_patches=0.4)


def tower(config=CONFIG):
    return ViT(config), jax.jit(Tower(config).init)(jax.random.key(0))


def images(batch=3, items=2):
    return np.random.default_rng(1).normal(size=(batch, items, 20, 20, 3)).astype(np.float32)


def test_dropped_patches_leave_what_is_kept_as_it_was():
    module, params = tower()
    run = lambda **options: np.asarray(
        module.apply({"params": params}, Media(images(), np.ones((3, 2), int)), **options).values
    ).reshape(6, -1, 12)
    whole = run()
    assert whole.shape[1] == CONFIG.num_tokens() == 25 + 3
    first, again, other = (run(rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape[1] == 10 + 3 and (first != other).any()
    np.testing.assert_array_equal(first[:, :3], whole[:, :3])
    chosen = []
    for mine, all_of_them in zip(first[:, 3:], whole[:, 3:], strict=True):
        places = [int(np.flatnonzero((all_of_them == patch).all(-1))[0]) for patch in mine]
        assert places == sorted(set(places)), "every patch once, in their order"
        chosen.append(tuple(places))
    assert len(set(chosen)) > 1, "every image has a draw of its own"


@pytest.mark.slow
def test_every_patch_is_as_likely_to_be_kept():
    # Block inputs are recognised by their first channel: the embedding is a constant plus the position.
    config = dataclasses.replace(CONFIG, keep_patches=0.2, num_registers=0, pre_norm=False)
    module, params = tower(config)
    params["position_embedding"] = jnp.tile(jnp.arange(26.0)[:, None], (1, 12))
    params["patch_embed"]["kernel"] *= 0
    media = Media(np.zeros((200, 1, 20, 20, 3), np.float32))
    out = module.apply({"params": params}, media, rngs={"dropout": jax.random.key(3)}).values[:, 1:, 0]
    assert out.shape == (200, 5)
    counts = np.bincount(np.asarray(out).round().astype(int).ravel(), minlength=26)[1:]
    # Binomial with mean 40 and standard deviation 5.7.
    assert counts.sum() == 1000 and counts.min() > 15 and counts.max() < 65


@pytest.mark.slow
def test_gradients_flow_through_what_is_kept_only():
    config = dataclasses.replace(CONFIG, feature_layers=(-1,))
    module, params = tower(config)

    def loss(images):
        media = Media(images)
        return module.apply({"params": params}, media, rngs={"dropout": jax.random.key(0)}).values.sum()

    slopes = np.asarray(jax.jit(jax.grad(loss))(images(1, 1)))[0, 0]
    touched = np.abs(slopes).reshape(5, 4, 5, 4, 3).sum((1, 3, 4)) > 0
    assert touched.sum() == 10 and np.isfinite(slopes).all()


def test_bad_options_and_inputs_are_named():
    for change, words in (
        ({"resize_positions": "bicubik"}, '"bicubic"'),
        ({"num_registers": -1}, "num_registers"),
        ({"pool": "class_twice"}, "needs final_norm"),
        ({"feature_layers": (4,)}, "3 hidden states"),
        ({"packed": True}, "packed needs resize_positions, no class_token"),
        ({"norm": "batch"}, "norm"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(CONFIG, **change)
    module, params = tower()
    with pytest.raises(ValueError, match="masked patches need an encoder with mask_token"):
        module.apply({"params": params}, images()[0], masked=np.ones((2, 25), bool), method="run")
    with pytest.raises(ValueError, match=r"24 x 16 pixels give 25 tokens \(6 x 4 patches\)"):
        module.apply({"params": params}, np.zeros((1, 24, 16, 3)), method="run")
    with pytest.raises(ValueError, match="need an encoder with resize_positions"):
        module.apply({"params": params}, np.zeros((1, 5, 48)), np.ones((1, 5)), np.ones((1, 2), int), method="run")


def test_counts():
    free = dataclasses.replace(CONFIG, resize_positions="bicubic", feature_strategy="patches")
    assert (CONFIG.num_tokens((1, 3, 7)), free.num_tokens((1, 3, 7)), free.num_tokens()) == (28, 21, 25)
    assert dataclasses.replace(free, feature_strategy="no_first").num_tokens((2, 3, 7)) == 44
