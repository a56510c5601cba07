"""AutoencoderKL against diffusers: moments, images, and the way out and back."""

import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.generators.autoencoder import Autoencoder, AutoencoderConfig, Moments, scaled, unscaled
from mmjax.interop.diffusers import load, save
from mmjax.interop.tensors import WeightsError

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
SIZES = {
    "two levels": dict(block_out_channels=(8, 12), layers_per_block=1, norm_num_groups=4, latent_channels=3),
    "three levels": dict(
        block_out_channels=(6, 6, 9), layers_per_block=2, norm_num_groups=3, latent_channels=5, act_fn="gelu",
        scaling_factor=1.5, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False,
    ),
    "one channel": dict(
        block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, in_channels=1, out_channels=1,
        mid_block_add_attention=False, sample_size=24,
    ),
}  # fmt: skip


def build(name):
    options = SIZES[name]
    levels = len(options["block_out_channels"])
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(down_block_types=(DOWN,) * levels, up_block_types=(UP,) * levels, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def close(mine, theirs):
    theirs = theirs.detach().numpy()
    mine = np.asarray(mine).transpose(0, 3, 1, 2)
    assert mine.shape == theirs.shape
    assert np.abs(mine - theirs).max() <= 1e-4 * max(1.0, np.sqrt(np.mean(theirs**2)))


@pytest.mark.quick("two levels", "three levels")
@pytest.mark.parametrize("name", SIZES)
def test_moments_images_and_export_equal_diffusers(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    config = loaded.config
    assert from_dict(AutoencoderConfig, json.loads(json.dumps(to_dict(config)))) == config
    rng = np.random.default_rng(1)
    by = config.downsampling
    images = rng.normal(size=(2, 3 * by, 5 * by, config.image_channels)).astype(np.float32)
    latents = rng.normal(size=(3, 4, 3, config.latent_channels)).astype(np.float32)
    module = Autoencoder(config)
    moments = jax.jit(lambda p, x: module.apply({"params": p}, x, method="encode"))(loaded.params, images)
    decoded = jax.jit(lambda p, x: module.apply({"params": p}, x, method="decode"))(loaded.params, latents)
    with torch.no_grad():
        theirs = model.encode(torch.tensor(images.transpose(0, 3, 1, 2))).latent_dist
        close(moments.mean, theirs.mean)
        close(moments.log_variance, theirs.logvar)
        close(decoded, model.decode(torch.tensor(latents.transpose(0, 3, 1, 2))).sample)
    np.testing.assert_allclose(moments.divergence(), theirs.kl().numpy(), rtol=1e-4)

    save(tmp_path / "ours", config, loaded.params, loaded.hf_config)
    again, info = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    assert load(tmp_path / "ours").config == config
    bare = save(tmp_path / "bare", config, loaded.params)
    assert load(tmp_path / "bare").config == config and bare[-1].name == "config.json"


def test_names_of_attention_as_they_were(tmp_path):
    model = build("two levels")
    model.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, array in load_file(path).items():
        for new, before in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        tensors[key] = array
    wanted = load(tmp_path).params
    save_file(tensors, path)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path).params, wanted)


def test_sampling_and_scaling():
    config = AutoencoderConfig((4,), groups=2, scale=0.5, shift=0.25)
    x = jnp.linspace(-1, 1, 12).reshape(1, 3, 1, 4)
    np.testing.assert_allclose(scaled(config, x), (x - 0.25) / 2, rtol=1e-6)
    np.testing.assert_allclose(unscaled(config, scaled(config, x)), x, atol=1e-6)
    moments = Moments(jnp.full((1, 200, 200, 1), 3.0), jnp.full((1, 200, 200, 1), np.log(4.0)))
    drawn = moments.sample(jax.random.key(0))
    assert float(drawn.mean()) == pytest.approx(3, abs=0.05) and float(drawn.std()) == pytest.approx(2, abs=0.05)


def test_what_does_not_fit_is_named(tmp_path):
    module = Autoencoder(AutoencoderConfig((4, 8), blocks=1, groups=2))
    with pytest.raises(ValueError, match="7 x 8 pixels; sides must be multiples of 2"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 7, 8, 3)), method="create"))
    with pytest.raises(ValueError, match=r"latents are \(1, 4, 4, 3\); wanted \[B, h, w, 4\]"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), method="decode"))
    with pytest.raises(ConfigError, match="6 is not a multiple of groups 4"):
        AutoencoderConfig((6,), groups=4)
    with pytest.raises(FileNotFoundError, match="no config.json"):
        load(tmp_path)
    build("one channel").save_pretrained(tmp_path)
    hf = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**hf, "_class_name": "AutoencoderKLL"}))
    with pytest.raises(ConfigError, match="AutoencoderKLL.*AutoencoderKL"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**hf, "layers_per_block": 2}))
    with pytest.raises(WeightsError, match=r"missing(.|\n)*encoder.down_blocks.0.resnets.1.norm1.weight"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="latents_mean"):
        (tmp_path / "config.json").write_text(json.dumps({**hf, "latents_mean": [0.0]}))
        load(tmp_path)
