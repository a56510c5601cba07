"""Emu3's VQ autoencoder against transformers: codes, images, videos, and the way out and back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from mmjax.config import ConfigError
from mmjax.generators.video_vq_autoencoder import VideoVQAutoencoder
from mmjax.interop.huggingface import load, model_of, read_config

SIZES = dict(
    base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1, attn_resolutions=[1], hidden_size=64,
    codebook_size=21, embed_dim=5, latent_channels=5, temporal_downsample_factor=4,
)  # fmt: skip


@pytest.mark.quick("image")
@pytest.mark.parametrize(("lead", "places"), [((2,), (2, 2, 3)), ((1, 8), (1, 2, 2, 3))], ids=["image", "video"])
def test_codes_and_back(weights, parity, lead, places):
    model = weights.randomised(transformers.Emu3VQVAE(transformers.Emu3VQVAEConfig(**SIZES)))
    with torch.no_grad():
        # Where the latents are, so that several codes are used.
        model.quantize.embedding.weight.mul_(4)
    loaded = weights.loaded(model)
    again = weights.again(loaded, type(model), r".*\.num_batches_tracked")
    rng = np.random.default_rng(0)
    media, codes = rng.normal(size=(*lead, 3, 4, 6)).astype(np.float32), rng.integers(0, 21, places)
    with torch.no_grad():
        # Theirs cuts codes off where an image was padded; this asks for all of them.
        wanted = again.encode(torch.tensor(media), torch.tensor([[100, 100]] * lead[0])).image_tokens
        decoded = again.decode(torch.tensor(codes)).numpy()
    encode, decode = (jax.jit(getattr(model_of(loaded.config), name)) for name in ("encode", "decode"))
    mine = np.asarray(encode(loaded.params, np.moveaxis(media, -3, -1)))
    np.testing.assert_array_equal(mine, np.stack(wanted))
    assert len(np.unique(mine)) > 1
    parity.close(decode(loaded.params, codes), np.moveaxis(decoded, -3, -1))


def test_what_is_not_supported_is_named(tmp_path):
    for changes, message in (
        ({"temporal_downsample_factor": 3}, "frames: 3 is not a power of two"),
        ({"num_attention_heads": 2}, "num_attention_heads: 2"),
        ({"hidden_size": 32}, "hidden_size: 32 is not the width 64"),
        ({"embed_dim": 4}, "inner_channels 5 and latent_channels 4 must be the same"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "emu3_vqgan", **SIZES, **changes}))
        with pytest.raises(ConfigError, match=message):
            load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "emu3_vqgan", **SIZES}))
    config, _ = read_config(tmp_path)
    for given, method, message in (
        (jnp.zeros((1, 3, 2, 2, 3)), "encode", "videos of 3 frames; there must be a multiple of 4"),
        (jnp.zeros((1, 3, 2, 3)), "encode", "3 x 2 pixels; sides must be multiples of 2"),
        (jnp.zeros((1, 2, 2)), "decode", r"codes are float32 \(1, 2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda x, m=method: VideoVQAutoencoder(config).init(jax.random.key(0), x, method=m), given)
