"""A VQ autoencoder alone: params, their axes, shapes of codes and back; values are compared where it is imported."""

import jax
import jax.numpy as jnp
import pytest

from mmjax.distributed.rules import spec
from mmjax.generators.codec_model import CodecModel
from mmjax.generators.video_vq_autoencoder import VideoVQAutoencoderConfig
from mmjax.generators.vq_autoencoder import VQAutoencoderConfig
from mmjax.paths import flatten

MAPS = VQAutoencoderConfig(codes=7, latent_channels=3, widths=(2, 4), blocks=1, groups=2, spatial_norm=True)


@pytest.mark.parametrize(
    ("config", "lead", "places"),
    [
        (MAPS, (2,), (2,)),
        (VideoVQAutoencoderConfig(MAPS, frames=2), (2,), (2,)),
        (VideoVQAutoencoderConfig(MAPS, frames=2), (1, 4), (1, 2)),
    ],
)
def test_axes_codes_and_back(config, lead, places):
    model = CodecModel(config)
    axes, shapes = flatten(model.param_axes()), flatten(model.param_shapes())
    assert axes.keys() == shapes.keys()
    for path, names in axes.items():
        assert len(names) == shapes[path].ndim, path
        spec(names)
    media = jax.ShapeDtypeStruct((*lead, 4, 6, 3), jnp.float32)
    codes = jax.eval_shape(model.encode, model.param_shapes(), media)
    assert codes.dtype == jnp.int32 and codes.shape == (*places, 2, 3)
    assert jax.eval_shape(model.decode, model.param_shapes(), codes) == media
