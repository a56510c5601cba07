"""PixArtTransformer2DModel against diffusers: predictions, and the way out and back."""

import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Condition
from mmjax.generators.pixart import PixArt, PixArtConfig
from mmjax.interop.diffusers import load, save

SIZES = {
    "size told": dict(
        num_attention_heads=2, attention_head_dim=6, in_channels=3, out_channels=6, num_layers=2, sample_size=10,
        cross_attention_dim=12, caption_channels=7, use_additional_conditions=True, interpolation_scale=2,
    ),
    "size not told": dict(
        num_attention_heads=2, attention_head_dim=4, in_channels=5, out_channels=5, num_layers=3, patch_size=1,
        sample_size=6, cross_attention_dim=8, caption_channels=9, attention_bias=False, norm_eps=1e-3,
    ),
    "captions as they are": dict(
        num_attention_heads=1, attention_head_dim=12, in_channels=2, out_channels=None, num_layers=1, sample_size=128,
        cross_attention_dim=5,
    ),
}  # fmt: skip


def build(name):
    torch.manual_seed(0)
    model = diffusers.PixArtTransformer2DModel(**SIZES[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def inputs(config, batch, height, width):
    rng = np.random.default_rng(height)
    x = rng.normal(size=(batch, height, width, config.in_channels)).astype(np.float32)
    sequence = rng.normal(size=(batch, 6, config.context_width)).astype(np.float32)
    # Captions padded on the right, and on the left.
    mask = np.ones((batch, 6), bool)
    mask[0, 4:] = False
    mask[-1, :batch] = False
    extras = None
    if config.reads_size:
        resolution = rng.integers(1, 1024, (batch, 2)).astype(np.float32)
        extras = {"resolution": resolution, "aspect_ratio": rng.uniform(0.5, 2, (batch, 1)).astype(np.float32)}
    return x, rng.integers(0, 1000, batch), Condition(sequence, mask, extras=extras)


def theirs(model, x, times, condition):
    t = lambda array: None if array is None else torch.tensor(array)
    extras = None if condition.extras is None else {name: t(array) for name, array in condition.extras.items()}
    with torch.no_grad():
        return model(
            t(x.transpose(0, 3, 1, 2)), t(condition.sequence), t(times), added_cond_kwargs=extras,
            encoder_attention_mask=None if condition.mask is None else t(condition.mask.astype(np.float32)),
        ).sample.numpy().transpose(0, 2, 3, 1)  # fmt: skip


@pytest.mark.quick("size told")
@pytest.mark.parametrize("name", SIZES)
def test_predictions_and_export_equal_diffusers(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    config = loaded.config
    assert from_dict(PixArtConfig, json.loads(json.dumps(to_dict(config)))) == config
    run = jax.jit(PixArt(config).apply)
    # A batch of one as well where it need not be quick.
    for batch, rows, columns in ((2, 3, 5),) if name == "size told" else ((1, 4, 2), (2, 3, 5)):
        given = inputs(config, batch, rows * config.patch, columns * config.patch)
        wanted = theirs(model, *given)
        got = np.asarray(run({"params": loaded.params}, *given))
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= 1e-4 * max(1.0, np.sqrt(np.mean(wanted**2)))

    save(tmp_path / "ours", config, loaded.params, loaded.hf_config)
    again, info = diffusers.PixArtTransformer2DModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    np.testing.assert_allclose(theirs(again.eval(), *given), wanted, atol=1e-6)
    save(tmp_path / "bare", config, loaded.params)
    assert load(tmp_path / "ours").config == config == load(tmp_path / "bare").config


def test_what_does_not_fit_is_named(tmp_path):
    build("size told").save_pretrained(tmp_path)
    hf = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"attention_type": "gated"}, "attention_type: 'gated' is not supported, only 'default'"),
        ({"cross_attention_dim": 9}, "cross_attention_dim: 9 must be 12"),
        ({"attention_head_dim": 4, "cross_attention_dim": 8}, "pixart.width: 8 is not a multiple of 3"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**hf, **change}))
        with pytest.raises(ConfigError, match=message):
            load(tmp_path)
    config = PixArtConfig(width=12, num_heads=2, num_layers=1, context_width=5)
    for condition, message in (
        (None, r"sequence is None; wanted \[B, N, 5\]"),
        (Condition(jnp.zeros((1, 2, 5))), r"resolution is None; wanted \[B, 2\]"),
    ):
        module = PixArt(config)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2, 2, 4)), 3, condition)
