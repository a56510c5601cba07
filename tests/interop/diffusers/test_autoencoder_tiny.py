"""AutoencoderTiny against diffusers: latents, images, and the way out and back."""

import json

import diffusers
import jax
import numpy as np
import pytest
import torch

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.generators.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig
from mmjax.interop.diffusers import load, save


def close(mine, theirs):
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    assert mine.shape == theirs.shape
    assert np.abs(np.asarray(mine) - theirs).max() <= 1e-4 * max(1.0, np.sqrt(np.mean(theirs**2)))


def test_latents_images_and_export_equal_diffusers(tmp_path):
    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(6,) * 3, decoder_block_out_channels=(6,) * 3, num_encoder_blocks=(1, 2, 1),
        num_decoder_blocks=(2, 1, 1), latent_channels=5, scaling_factor=1.5, act_fn="silu",
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    config = loaded.config
    assert from_dict(TinyAutoencoderConfig, json.loads(json.dumps(to_dict(config)))) == config
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 12, 20, 3)).astype(np.float32)
    latents = (4 * rng.normal(size=(3, 4, 3, 5))).astype(np.float32)
    module = TinyAutoencoder(config)
    encoded = jax.jit(lambda p, x: module.apply({"params": p}, x, method="encode"))(loaded.params, images)
    decoded = jax.jit(lambda p, x: module.apply({"params": p}, x, method="decode"))(loaded.params, latents)
    with torch.no_grad():
        close(encoded, model.encode(torch.tensor(images.transpose(0, 3, 1, 2))).latents)
        close(decoded, model.decode(torch.tensor(latents.transpose(0, 3, 1, 2))).sample)
    save(tmp_path / "ours", config, loaded.params)
    again, info = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    assert load(tmp_path / "ours").config == config
    hf = json.loads((tmp_path / "ours" / "config.json").read_text())
    (tmp_path / "ours" / "config.json").write_text(json.dumps({**hf, "encoder_block_out_channels": [6, 8, 6]}))
    with pytest.raises(ConfigError, match=r"\[6, 8\] must be one"):
        load(tmp_path / "ours")
    with pytest.raises(ConfigError, match="encoder_blocks has 2 levels, decoder_blocks 1"):
        TinyAutoencoderConfig(encoder_blocks=(1, 1), decoder_blocks=(1,))
