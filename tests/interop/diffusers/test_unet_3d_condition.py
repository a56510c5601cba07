"""UNet3DConditionModel against diffusers: predictions, and the way out and back."""

import dataclasses
import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Condition
from mmjax.generators.unet3d import UNet3D, UNet3DConfig
from mmjax.interop.diffusers import load, save
from mmjax.interop.diffusers.unet_3d_condition import config_from_hf

CROSS_DOWN, CROSS_UP, DOWN, UP = "CrossAttnDownBlock3D", "CrossAttnUpBlock3D", "DownBlock3D", "UpBlock3D"
SIZES = {
    "two levels": dict(
        block_out_channels=(6, 12), layers_per_block=1, norm_num_groups=3, cross_attention_dim=10, attention_head_dim=3,
        down_block_types=(CROSS_DOWN, DOWN), up_block_types=(UP, CROSS_UP),
    ),
    "three levels": dict(
        block_out_channels=(8, 8, 12), layers_per_block=2, norm_num_groups=4, cross_attention_dim=7, in_channels=3,
        attention_head_dim=4, down_block_types=(CROSS_DOWN, DOWN, CROSS_DOWN), up_block_types=(CROSS_UP, UP, CROSS_UP),
        out_channels=5, norm_eps=1e-4,
    ),
}  # fmt: skip


def build(name):
    torch.manual_seed(0)
    model = diffusers.UNet3DConditionModel(sample_size=16, **SIZES[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def inputs(config, *shape):
    rng = np.random.default_rng(shape[-1])
    x = rng.normal(size=(*shape, config.in_channels)).astype(np.float32)
    sequence = rng.normal(size=(shape[0], 5, config.context_width)).astype(np.float32)
    return x, rng.integers(0, 1000, shape[0]), sequence


def theirs(model, x, times, sequence):
    with torch.no_grad():
        out = model(torch.tensor(x.transpose(0, 4, 1, 2, 3)), torch.tensor(times), torch.tensor(sequence)).sample
    return out.numpy().transpose(0, 2, 3, 4, 1)


@pytest.mark.quick("two levels")
@pytest.mark.parametrize("name", SIZES)
def test_predictions_and_export_equal_diffusers(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    config = loaded.config
    assert from_dict(UNet3DConfig, json.loads(json.dumps(to_dict(config)))) == config
    run = jax.jit(UNet3D(config).apply)
    for shape in ((2, 3, 5, 8),) if name == "two levels" else ((1, 4, 7, 9), (1, 1, 4, 8)):
        x, times, sequence = inputs(config, *shape)
        wanted = theirs(model, x, times, sequence)
        got = np.asarray(run({"params": loaded.params}, x, times, Condition(sequence)))
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= 1e-4 * max(1.0, np.sqrt(np.mean(wanted**2)))

    # Nothing of their config.json is needed.
    save(tmp_path / "ours", config, loaded.params)
    assert config_from_hf(json.loads((tmp_path / "ours" / "config.json").read_text())) == config
    again, info = diffusers.UNet3DConditionModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    np.testing.assert_allclose(theirs(again.eval(), x, times, sequence), wanted, atol=1e-6)


@pytest.mark.slow
def test_gradients_reach_the_condition_as_in_torch(tmp_path):
    model = build("two levels")
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    x, times, sequence = inputs(loaded.config, 2, 2, 4, 4)
    noise = np.random.default_rng(9).normal(size=x.shape).astype(np.float32)

    @jax.jit
    def slope(sequence, mask=None):
        out = UNet3D(loaded.config, remat="full").apply({"params": loaded.params}, x, times, Condition(sequence, mask))
        return jnp.mean(jnp.square(out - noise))

    leaf = torch.tensor(sequence, requires_grad=True)
    out = model(torch.tensor(x.transpose(0, 4, 1, 2, 3)), torch.tensor(times), leaf).sample
    torch.nn.functional.mse_loss(out, torch.tensor(noise.transpose(0, 4, 1, 2, 3))).backward()
    wanted = leaf.grad.numpy()
    assert np.abs(jax.grad(slope)(sequence) - wanted).max() <= 1e-4 * max(np.sqrt(np.mean(wanted**2)), 1e-3)
    mask = np.arange(5)[None] < np.array([[3], [5]])
    got = jax.grad(slope)(sequence, mask)
    assert np.abs(got[0, 3:]).max() == 0 < np.abs(got[1, 3:]).max()


def test_what_does_not_fit_is_named(tmp_path):
    config = UNet3DConfig(widths=(4, 8), blocks=1, attends=(True, False), head_dim=2, context_width=6, groups=2)
    assert config.feature_shape == (1, 2, 2, 4)

    def run(x, condition=None):
        return jax.eval_shape(lambda: UNet3D(config).init(jax.random.key(0), jnp.zeros(x), 3, condition))

    with pytest.raises(ValueError, match=r"latents are \(1, 4, 4, 4\); wanted \[B, T, h, w, 4\]"):
        run((1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"sequence is None; wanted \[B, N, 6\]"):
        run((1, 1, 4, 4, 4))
    with pytest.raises(ConfigError, match="attends has 1 entries, widths has 2"):
        dataclasses.replace(config, attends=(True,))
    with pytest.raises(ConfigError, match="widths: 4 is not a multiple of groups 2 and head_dim 3"):
        dataclasses.replace(config, head_dim=3)
    hf = {"_class_name": "UNet3DConditionModel", "block_out_channels": [32, 64], "attention_head_dim": 8}
    types = {"down_block_types": [CROSS_DOWN, DOWN], "up_block_types": [UP, CROSS_UP]}
    for change, message in (
        ({"act_fn": "gelu"}, "act_fn: 'gelu'"),
        ({"up_block_types": [UP, UP]}, "not a mirrored pair"),
        ({"attention_head_dim": [2, 2]}, "attention_head_dim"),
        ({"time_cond_proj_dim": 8}, "time_cond_proj_dim"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**hf, **types, **change}))
        with pytest.raises(ConfigError, match=message):
            load(tmp_path)
