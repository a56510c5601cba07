"""A mix of encoders against its parts, each run by itself, and torch's interpolation between their grids."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Media
from mmjax.encoders.convnext import ConvNeXt, ConvNeXtConfig
from mmjax.encoders.mixed import MixedEncoder, MixedEncoderConfig, Normalization
from mmjax.encoders.vit import ViT, ViTConfig

CLIP = ViTConfig(20, 4, 12, 1, 3, 16, feature_strategy="patches")
CONVNEXT = ConvNeXtConfig(24, 4, (6, 10), (1, 1), layer_scale=0.5, feature_stages=(1,))
OLD, NEW = Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), Normalization((0.1, 0.2, 0.3), (0.9, 0.8, 0.7))
CONFIG = MixedEncoderConfig({"clip": CLIP, "convnext": CONVNEXT}, 20, 4, OLD, {"convnext": NEW})


@pytest.mark.slow
def test_features_are_those_of_the_parts():
    assert from_dict(MixedEncoderConfig, to_dict(CONFIG)) == CONFIG
    assert (CONFIG.num_tokens(), CONFIG.feature_width) == (16, 22)
    module = MixedEncoder(CONFIG)
    images = np.random.default_rng(0).normal(size=(2, 2, 20, 20, 3)).astype(np.float32)
    boxed = jax.jit(lambda key: module.init(key, images[0], method="create"))(jax.random.key(0))["params"]
    params = jax.tree.map(lambda box: box.value, boxed, is_leaf=lambda leaf: hasattr(leaf, "names"))
    assert set(params) == {"clip", "convnext"}
    out = module.apply({"params": params}, Media(images, np.array([[1, 2], [1, 0]], np.int32)))
    assert out.values.shape == (2, 32, 22) and out.segment_ids[1].sum() == 16

    flat = images.reshape(4, 20, 20, 3)
    clip = ViT(CLIP).apply({"params": params["clip"]}, Media(flat[:, None])).values
    pixels = flat * np.array(OLD.std) + np.array(OLD.mean)
    larger = jax.image.resize(jnp.asarray((pixels - np.array(NEW.mean)) / np.array(NEW.std)), (4, 24, 24, 3), "bicubic")
    convnext = ConvNeXt(CONVNEXT).apply({"params": params["convnext"]}, Media(larger[:, None])).values
    parts = []
    for values, side in ((clip, 5), (convnext, 3)):
        grid = torch.tensor(np.asarray(values)).transpose(1, 2).unflatten(2, (side, side))
        grid = torch.nn.functional.interpolate(grid, size=(4, 4), mode="bilinear", align_corners=False)
        parts.append(grid.flatten(2).transpose(1, 2).numpy())
    np.testing.assert_allclose(out.values.reshape(4, 16, 22), np.concatenate(parts, -1), atol=2e-5)


def test_what_does_not_fit_is_named():
    for change, words in (
        ({"encoders": {}}, "at least one encoder"),
        ({"encoders": {"clip": dataclasses.replace(CLIP, feature_strategy="full")}}, "gives 26 features.*5 x 5"),
        ({"normalizations": {"dino": NEW}}, "encoders are clip, convnext"),
        ({"normalization": None}, "normalizations need normalization"),
        ({"grid_size": 0}, "grid_size"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(CONFIG, **{"normalizations": {}, **change} if "encoders" in change else change)
    module = MixedEncoder(CONFIG)
    with pytest.raises(ValueError, match="24 x 20 pixels"):
        module.apply({"params": {}}, Media(np.zeros((1, 1, 24, 20, 3))))
