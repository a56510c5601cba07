"""WanTransformer3DModel against diffusers: predictions, and the way out and back."""

import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Condition
from mmjax.generators.wan import Wan, WanConfig
from mmjax.interop.diffusers import load, save
from mmjax.interop.diffusers.wan_transformer_3d import config_from_hf

SIZES = {
    "as published": dict(
        num_attention_heads=2, attention_head_dim=14, in_channels=3, out_channels=5, text_dim=7, freq_dim=10,
        ffn_dim=9, num_layers=2,
    ),
    "other patches": dict(
        num_attention_heads=3, attention_head_dim=6, in_channels=4, out_channels=None, text_dim=5, freq_dim=8,
        ffn_dim=11, num_layers=3, patch_size=(2, 1, 3), cross_attn_norm=False, eps=1e-3,
    ),
}  # fmt: skip


def build(name):
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(**SIZES[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def inputs(config, batch, *grid):
    rng = np.random.default_rng(sum(grid))
    shape = (size * by for size, by in zip(grid, config.patch, strict=True))
    x = rng.normal(size=(batch, *shape, config.in_channels)).astype(np.float32)
    sequence = rng.normal(size=(batch, 6, config.context_width)).astype(np.float32)
    return x, rng.integers(0, 1000, batch), sequence


def theirs(model, x, times, sequence):
    with torch.no_grad():
        out = model(torch.tensor(x.transpose(0, 4, 1, 2, 3)), torch.tensor(times), torch.tensor(sequence)).sample
    return out.numpy().transpose(0, 2, 3, 4, 1)


@pytest.mark.quick("as published")
@pytest.mark.parametrize("name", SIZES)
def test_predictions_and_export_equal_diffusers(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    config = loaded.config
    assert from_dict(WanConfig, json.loads(json.dumps(to_dict(config)))) == config
    run = jax.jit(Wan(config).apply)
    for shape in ((2, 3, 2, 5),) if name == "as published" else ((1, 2, 5, 3), (2, 1, 1, 1)):
        x, times, sequence = inputs(config, *shape)
        wanted = theirs(model, x, times, sequence)
        got = np.asarray(run({"params": loaded.params}, x, times, Condition(sequence)))
        assert got.shape == wanted.shape == (*x.shape[:4], config.out_channels)
        assert np.abs(got - wanted).max() <= 1e-4 * max(1.0, np.sqrt(np.mean(wanted**2)))

    # Nothing of their config.json is needed.
    save(tmp_path / "ours", config, loaded.params)
    assert config_from_hf(json.loads((tmp_path / "ours" / "config.json").read_text())) == config
    again, info = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    np.testing.assert_allclose(theirs(again.eval(), x, times, sequence), wanted, atol=1e-6)


@pytest.mark.slow
def test_tokens_of_a_condition_that_are_masked_count_for_nothing(tmp_path):
    build("as published").save_pretrained(tmp_path)
    loaded = load(tmp_path)
    x, times, sequence = inputs(loaded.config, 2, 1, 2, 2)
    run = jax.jit(Wan(loaded.config, remat="full").apply)
    mask = np.array([[True] * 4 + [False] * 2, [True] * 6])
    got = run({"params": loaded.params}, x, times, Condition(sequence, mask))
    short = run({"params": loaded.params}, x[:1], times[:1], Condition(sequence[:1, :4]))
    np.testing.assert_allclose(got[:1], short, atol=1e-5)


def test_what_does_not_fit_is_named():
    config = WanConfig(2, 3, (1, 2, 2), 1, 6, 1, 5, 4, 8)

    def run(shape, condition=None):
        return jax.eval_shape(lambda: Wan(config).init(jax.random.key(0), jnp.zeros(shape), 3, condition))

    with pytest.raises(ValueError, match=r"latents are \(1, 4, 4, 2\); wanted \[B, T, h, w, 2\]"):
        run((1, 4, 4, 2))
    with pytest.raises(ValueError, match=r"latents of \(1, 3, 4\) places; they must be multiples of \(1, 2, 2\)"):
        run((1, 1, 3, 4, 2))
    with pytest.raises(ValueError, match=r"sequence is None; wanted \[B, N, 4\]"):
        run((1, 1, 4, 4, 2))
    for options, message in (
        ({"patch": (2, 2)}, "wan.patch"),
        ({"head_dim": 4}, "wan.head_dim 4 must be even and at least 6"),
        ({"time_waves": 7}, "wan.time_waves 7 must be even"),
    ):
        with pytest.raises(ConfigError, match=message):
            WanConfig(**options)
    assert config_from_hf({}) == WanConfig()
    for options, message in (({"image_dim": 8}, "image_dim: 8"), ({"added_kv_proj_dim": 4}, "added_kv_proj_dim")):
        with pytest.raises(ConfigError, match=message):
            config_from_hf(options)
