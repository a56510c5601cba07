"""VQModel against diffusers: latents, codes, images, and the way out and back."""

import json

import diffusers
import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.generators.vq_autoencoder import VQAutoencoder, VQAutoencoderConfig
from mmjax.interop.diffusers import load, save

DOWN, UP, ATTN_DOWN, ATTN_UP = (
    "DownEncoderBlock2D", "UpDecoderBlock2D", "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"
)  # fmt: skip
SIZES = {
    "latent diffusion": dict(
        block_out_channels=(6, 9), layers_per_block=1, norm_num_groups=3, latent_channels=5, vq_embed_dim=4,
        num_vq_embeddings=23, down_block_types=(DOWN, ATTN_DOWN), up_block_types=(ATTN_UP, UP), scaling_factor=0.5,
    ),
    "movq": dict(
        block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=32, latent_channels=4, norm_type="spatial",
        num_vq_embeddings=40, down_block_types=(DOWN, ATTN_DOWN), up_block_types=(ATTN_UP, UP), sample_size=24,
    ),
    "amused": dict(
        block_out_channels=(4, 4, 8), layers_per_block=2, norm_num_groups=2, latent_channels=7, vq_embed_dim=7,
        num_vq_embeddings=64, down_block_types=(DOWN,) * 3, up_block_types=(UP,) * 3, mid_block_add_attention=False,
        lookup_from_codebook=True,
    ),
}  # fmt: skip


def build(name):
    torch.manual_seed(0)
    model = diffusers.VQModel(**SIZES[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        # Far enough apart that rounding never decides which one is nearest.
        model.quantize.embedding.weight.normal_()
    return model.eval()


def torch_of(images):
    return torch.tensor(images.transpose(0, 3, 1, 2))


def close(mine, theirs):
    theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
    assert mine.shape == theirs.shape
    assert np.abs(np.asarray(mine) - theirs).max() <= 1e-4 * max(1.0, np.sqrt(np.mean(theirs**2)))


@pytest.mark.quick("latent diffusion")
@pytest.mark.parametrize("name", SIZES)
def test_codes_images_and_export_equal_diffusers(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    config, params = loaded.config, {"params": loaded.params}
    assert from_dict(VQAutoencoderConfig, json.loads(json.dumps(to_dict(config)))) == config
    rng = np.random.default_rng(1)
    by = config.downsampling
    images = rng.normal(size=(2, 3 * by, 5 * by, 3)).astype(np.float32)
    latents = rng.normal(size=(3, 4, 3, config.latent_channels)).astype(np.float32)
    module = VQAutoencoder(config)
    encode, quantize, decode = (
        jax.jit(lambda x, method=method: module.apply(params, x, method=method))
        for method in ("encode", "quantize", "decode")
    )
    with torch.no_grad():
        close(encode(images), model.encode(torch_of(images)).latents)
        values, loss, (_, _, codes) = model.quantize(torch_of(latents))
        out = model.decode(torch_of(latents))
    mine = quantize(latents)
    np.testing.assert_array_equal(mine.codes.ravel(), codes.numpy())
    assert mine.codes.shape == (3, 4, 3) and len(set(codes.tolist())) > 5
    close(mine.values, values)
    np.testing.assert_allclose(mine.loss, loss, rtol=1e-5)
    close(decode(latents), out.sample)
    close(decode(np.asarray(mine.codes)), out.sample)

    save(tmp_path / "ours", config, loaded.params, loaded.hf_config)
    again, info = diffusers.VQModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    save(tmp_path / "bare", config, loaded.params)
    assert load(tmp_path / "ours").config == config == load(tmp_path / "bare").config


def test_latents_as_they_are_and_old_names(tmp_path):
    model = build("latent diffusion")
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    latents = np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype(np.float32)
    apply = VQAutoencoder(loaded.config).apply
    mine = jax.jit(lambda x: apply({"params": loaded.params}, x, False, method="decode"))(latents)
    with torch.no_grad():
        close(mine, model.decode(torch_of(latents), force_not_quantize=True).sample)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = {}
    for key, array in load_file(path).items():
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            key = key.replace(f".{new}.", f".{before}.")
        tensors[key] = array
    save_file(tensors, path)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path).params, loaded.params)


def test_what_is_not_supported_is_named(tmp_path):
    build("movq").save_pretrained(tmp_path)
    hf = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"norm_type": "layer"}, "norm_type: 'layer'"),
        ({"vq_embed_dim": 3}, "norm_type 'spatial' with norm_num_groups 32, vq_embed_dim 3, latent_channels 4"),
        ({"up_block_types": [UP, UP]}, "not a mirrored pair"),
        ({"down_block_types": [DOWN, "Down2D"]}, r"down_block_types.*supported are 2 of DownEncoderBlock2D"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**hf, **change}))
        with pytest.raises(ConfigError, match=message):
            load(tmp_path)
    with pytest.raises(ConfigError, match="unit_codes"):
        save(tmp_path, VQAutoencoderConfig(unit_codes=True), {})
