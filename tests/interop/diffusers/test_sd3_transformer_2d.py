"""SD3Transformer2DModel against diffusers: predictions, and the way out and back."""

import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Condition
from mmjax.generators.mmdit import MMDiT, MMDiTConfig
from mmjax.interop.diffusers import load, save

SIZES = {
    "3": dict(
        num_attention_heads=2, attention_head_dim=6, in_channels=3, out_channels=3, num_layers=3, patch_size=2,
        caption_projection_dim=12, joint_attention_dim=7, pooled_projection_dim=5, pos_embed_max_size=8, sample_size=6,
    ),
    "3.5 medium": dict(
        num_attention_heads=1, attention_head_dim=8, in_channels=2, out_channels=None, num_layers=4, patch_size=1,
        caption_projection_dim=8, joint_attention_dim=9, pooled_projection_dim=4, pos_embed_max_size=7, sample_size=5,
        qk_norm="rms_norm", dual_attention_layers=(0, 1),
    ),
    "one layer": dict(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=2, num_layers=1, patch_size=2,
        caption_projection_dim=8, joint_attention_dim=6, pooled_projection_dim=3, pos_embed_max_size=5, sample_size=8,
        qk_norm="rms_norm",
    ),
}  # fmt: skip


def build(name):
    torch.manual_seed(0)
    model = diffusers.SD3Transformer2DModel(**SIZES[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def inputs(config, batch, height, width):
    rng = np.random.default_rng(height)
    shapes = (batch, height, width, config.in_channels), (batch, 5, config.context_width), (batch, config.pooled_width)
    x, sequence, pooled = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return x, rng.uniform(0, 1000, batch).astype(np.float32), Condition(sequence, None, pooled)


def theirs(model, x, times, condition):
    with torch.no_grad():
        return model(
            torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(condition.sequence), torch.tensor(condition.pooled),
            torch.tensor(times),
        ).sample.numpy().transpose(0, 2, 3, 1)  # fmt: skip


@pytest.mark.quick("3.5 medium")
@pytest.mark.parametrize("name", SIZES)
def test_predictions_and_export_equal_diffusers(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    config = loaded.config
    assert from_dict(MMDiTConfig, json.loads(json.dumps(to_dict(config)))) == config
    run = jax.jit(MMDiT(config).apply)
    # A batch of one as well where it need not be quick.
    for batch, rows, columns in ((2, 3, 5),) if name == "3.5 medium" else ((1, 4, 2), (2, 3, 5)):
        given = inputs(config, batch, rows * config.patch, columns * config.patch)
        wanted = theirs(model, *given)
        got = np.asarray(run({"params": loaded.params}, *given))
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= 1e-4 * max(1.0, np.sqrt(np.mean(wanted**2)))

    save(tmp_path / "ours", config, loaded.params, loaded.hf_config)
    again, info = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    np.testing.assert_allclose(theirs(again.eval(), *given), wanted, atol=1e-6)
    save(tmp_path / "bare", config, loaded.params)
    assert load(tmp_path / "ours").config == config == load(tmp_path / "bare").config


@pytest.mark.slow
def test_positions_as_they_start_and_a_mask(tmp_path):
    model = build("3")
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    module = MMDiT(loaded.config)
    made = module.init(jax.random.key(0), jnp.zeros((1, *loaded.config.feature_shape)), method="create")
    np.testing.assert_allclose(made["params"]["places"].value, loaded.params["places"], atol=1e-5)
    x, times, condition = inputs(loaded.config, 2, 4, 6)
    run = jax.jit(module.apply)
    mask = np.array([[True] * 3 + [False] * 2, [True] * 5])
    got = run({"params": loaded.params}, x, times, Condition(condition.sequence, mask, condition.pooled))
    short = run(
        {"params": loaded.params}, x[:1], times[:1], Condition(condition.sequence[:1, :3], None, condition.pooled[:1])
    )
    np.testing.assert_allclose(got[:1], short, atol=1e-5)
    np.testing.assert_allclose(got[1], run({"params": loaded.params}, x, times, condition)[1], atol=1e-5)


def test_what_does_not_fit_is_named(tmp_path):
    build("one layer").save_pretrained(tmp_path)
    hf = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"qk_norm": "layer_norm"}, "qk_norm: 'layer_norm' is not supported"),
        ({"caption_projection_dim": 9}, "caption_projection_dim: 9 must be 8"),
        ({"dual_attention_layers": [1]}, r"dual_attention_layers: \[1\] are not the first 1"),
        ({"dual_attention_layers": [0]}, "mmdit.twice_layers: 1 is not less than num_layers 1"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**hf, **change}))
        with pytest.raises(ConfigError, match=message):
            load(tmp_path)
    module = MMDiT(MMDiTConfig(width=8, num_heads=2, num_layers=2, context_width=5, pooled_width=3, max_grid=2))
    for side, condition, message in (
        (2, Condition(jnp.zeros((1, 2, 5))), r"pooled vector is None; wanted \[B, 3\]"),
        (6, Condition(jnp.zeros((1, 2, 5)), None, jnp.zeros((1, 3))), "3 x 3 patches.*for 2 a side"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, side, side, 16)), 3, condition)
