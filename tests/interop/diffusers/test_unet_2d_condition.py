"""UNet2DConditionModel against diffusers: predictions, and the way out and back."""

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
from mmjax.generators.unet import UNet, UNetConfig
from mmjax.interop.diffusers import load, save

CROSS_DOWN, CROSS_UP, DOWN, UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "DownBlock2D", "UpBlock2D"
SIZES = {
    "stable diffusion": dict(
        block_out_channels=(8, 12), layers_per_block=1, norm_num_groups=4, cross_attention_dim=10, attention_head_dim=2,
        down_block_types=(CROSS_DOWN, DOWN), up_block_types=(UP, CROSS_UP),
    ),
    "three levels": dict(
        block_out_channels=(6, 12, 12), layers_per_block=2, norm_num_groups=3, cross_attention_dim=7, in_channels=8,
        attention_head_dim=[1, 2, 3], down_block_types=(CROSS_DOWN, CROSS_DOWN, DOWN),
        up_block_types=(UP, CROSS_UP, CROSS_UP), use_linear_projection=True, flip_sin_to_cos=False, freq_shift=1,
    ),
    "sdxl": dict(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=9,
        attention_head_dim=[2, 4], transformer_layers_per_block=[1, 3], down_block_types=(DOWN, CROSS_DOWN),
        up_block_types=(CROSS_UP, UP), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=6, projection_class_embeddings_input_dim=11 + 36,
    ),
    "audioldm": dict(
        block_out_channels=(8, 12), layers_per_block=1, norm_num_groups=4, cross_attention_dim=(8, 12),
        attention_head_dim=4, down_block_types=(DOWN, CROSS_DOWN), up_block_types=(CROSS_UP, UP), in_channels=3,
        out_channels=5, class_embed_type="simple_projection", class_embeddings_concat=True,
        projection_class_embeddings_input_dim=13,
    ),
}  # fmt: skip


def build(name):
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(sample_size=16, **SIZES[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def inputs(config, batch, height, width):
    rng = np.random.default_rng(height)
    x = rng.normal(size=(batch, height, width, config.in_channels)).astype(np.float32)
    times = rng.integers(0, 1000, batch)
    sequence = pooled = sizes = None
    if config.context_width is not None:
        sequence = rng.normal(size=(batch, 5, config.context_width)).astype(np.float32)
    if config.pooled_width:
        pooled = rng.normal(size=(batch, config.pooled_width)).astype(np.float32)
    if config.num_sizes:
        sizes = rng.integers(0, 1024, (batch, config.num_sizes)).astype(np.float32)
    return x, times, sequence, pooled, sizes


def theirs(model, x, times, sequence, pooled, sizes):
    t = lambda array: None if array is None else torch.tensor(array)
    options = {}
    if sizes is not None:
        options["added_cond_kwargs"] = {"text_embeds": t(pooled), "time_ids": t(sizes)}
    elif pooled is not None:
        options["class_labels"] = t(pooled)
    with torch.no_grad():
        return model(t(x.transpose(0, 3, 1, 2)), t(times), t(sequence), **options).sample.numpy().transpose(0, 2, 3, 1)


def condition_of(sequence, pooled, sizes, mask=None):
    return Condition(sequence, mask, pooled, None if sizes is None else {"sizes": sizes})


@pytest.mark.quick("sdxl")
@pytest.mark.parametrize("name", SIZES)
def test_predictions_and_export_equal_diffusers(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    config = loaded.config
    assert from_dict(UNetConfig, json.loads(json.dumps(to_dict(config)))) == config
    run = jax.jit(UNet(config).apply)
    for batch, height, width in ((2, 8, 12), (1, 7, 10)):
        x, times, *condition = inputs(config, batch, height, width)
        wanted = theirs(model, x, times, *condition)
        got = np.asarray(run({"params": loaded.params}, x, times, condition_of(*condition)))
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= 1e-4 * max(1.0, np.sqrt(np.mean(wanted**2)))

    save(tmp_path / "ours", config, loaded.params, loaded.hf_config)
    again, info = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    save(tmp_path / "bare", config, loaded.params)
    assert load(tmp_path / "ours").config == config == load(tmp_path / "bare").config
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "bare").eval()
    np.testing.assert_allclose(theirs(again, x, times, *condition), wanted, atol=1e-6)


@pytest.mark.slow
def test_tokens_of_a_condition_that_are_masked_count_for_nothing(tmp_path):
    model = build("stable diffusion")
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    x, times, sequence, _, _ = inputs(loaded.config, 2, 8, 8)
    run = jax.jit(UNet(loaded.config).apply)
    mask = np.array([[True] * 3 + [False] * 2, [True] * 5])
    got = run({"params": loaded.params}, x, times, Condition(sequence, mask))
    short = run({"params": loaded.params}, x[:1], times[:1], Condition(sequence[:1, :3]))
    np.testing.assert_allclose(got[:1], short, atol=1e-5)


@pytest.mark.slow
def test_gradients_reach_the_condition_as_in_torch(tmp_path):
    model = build("stable diffusion")
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    x, times, sequence, _, _ = inputs(loaded.config, 2, 8, 8)
    noise = np.random.default_rng(9).normal(size=x.shape).astype(np.float32)

    @jax.jit
    def slope(sequence):
        out = UNet(loaded.config, remat="full").apply({"params": loaded.params}, x, times, Condition(sequence))
        return jnp.mean(jnp.square(out - noise))

    leaf = torch.tensor(sequence, requires_grad=True)
    out = model(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(times), leaf).sample
    torch.nn.functional.mse_loss(out, torch.tensor(noise.transpose(0, 3, 1, 2))).backward()
    wanted = leaf.grad.numpy()
    assert np.abs(jax.grad(slope)(sequence) - wanted).max() <= 1e-4 * max(np.sqrt(np.mean(wanted**2)), 1e-3)


def test_what_does_not_fit_is_named(tmp_path):
    config = UNetConfig(widths=(4, 8), blocks=1, layers=(1, 0), num_heads=(2, 2), context_width=6, groups=2)

    def run(config, x, condition=None):
        module = UNet(config)
        return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(x), 3, condition))

    with pytest.raises(ValueError, match=r"latents are \(1, 4, 4, 3\); wanted \[B, h, w, 4\]"):
        run(config, (1, 4, 4, 3))
    with pytest.raises(ValueError, match=r"sequence is None; wanted \[B, N, 6\]"):
        run(config, (1, 4, 4, 4))
    wide = dataclasses.replace(config, pooled="added", pooled_width=5)
    with pytest.raises(ValueError, match=r"pooled vector is None; wanted \[B, 5\]"):
        run(wide, (1, 4, 4, 4), Condition(jnp.zeros((1, 2, 6))))
    with pytest.raises(ConfigError, match="layers has 1 entries, widths has 2"):
        dataclasses.replace(config, layers=(1,))
    build("stable diffusion").save_pretrained(tmp_path)
    hf = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"time_embedding_type": "fourier"}, "time_embedding_type: 'fourier'"),
        ({"up_block_types": [UP, UP]}, "not a mirrored pair"),
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ({"attention_head_dim": [2]}, "attention_head_dim"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**hf, **change}))
        with pytest.raises(ConfigError, match=message):
            load(tmp_path)
