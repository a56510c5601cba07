"""DiTTransformer2DModel against diffusers: predictions, and the way out and back."""

import json

import diffusers
import jax
import numpy as np
import pytest
import torch

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Condition
from mmjax.generators.dit import DiT, DiTConfig
from mmjax.interop.diffusers import load, save

SIZES = {
    "variance too": dict(
        num_attention_heads=2, attention_head_dim=6, in_channels=3, out_channels=6, num_layers=2, patch_size=2,
        sample_size=8, num_embeds_ada_norm=5,
    ),
    "three layers": dict(
        num_attention_heads=1, attention_head_dim=8, in_channels=5, num_layers=3, patch_size=1, sample_size=5,
        num_embeds_ada_norm=11, attention_bias=False, norm_eps=1e-3,
    ),
}  # fmt: skip


def build(name):
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(**SIZES[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def inputs(config, batch, height, width):
    rng = np.random.default_rng(height)
    x = rng.normal(size=(batch, height, width, config.in_channels)).astype(np.float32)
    return x, rng.integers(0, 1000, batch), rng.integers(0, config.num_classes + 1, batch)


def theirs(model, x, times, classes):
    with torch.no_grad():
        return model(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(times), torch.tensor(classes)).sample.numpy()


def near(got, wanted):
    assert got.shape == wanted.shape
    assert np.abs(np.asarray(got) - wanted).max() <= 1e-4 * max(1.0, np.sqrt(np.mean(wanted**2)))


@pytest.mark.quick("variance too")
@pytest.mark.parametrize("name", SIZES)
def test_predictions_and_export_equal_diffusers(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    config = loaded.config
    assert from_dict(DiTConfig, json.loads(json.dumps(to_dict(config)))) == config
    apply = jax.jit(DiT(config).apply)

    def run(x, times, classes):
        return apply({"params": loaded.params}, x, times, Condition(None, extras={"classes": classes}))

    # A batch of three, of the size it was trained with, where it need not be quick.
    for batch, side in ((1, 3),) if name == "variance too" else ((1, 3), (3, config.sample_size)):
        given = inputs(config, batch, side * config.patch, side * config.patch)
        wanted = theirs(model, *given).transpose(0, 2, 3, 1)
        near(run(*given), wanted)
    # Theirs takes 4 x 9 patches for 6 x 6 where they are put together; until then they are right.
    seen = {}
    model.proj_out_2.register_forward_hook(lambda module, args, out: seen.update(tokens=out.numpy()))
    given = inputs(config, 2, 4 * config.patch, 9 * config.patch)
    theirs(model, *given)
    patch = config.patch
    parts = seen["tokens"].reshape(2, 4, 9, patch, patch, config.out_channels).transpose(0, 1, 3, 2, 4, 5)
    near(run(*given), parts.reshape(2, 4 * patch, 9 * patch, config.out_channels))

    save(tmp_path / "ours", config, loaded.params, loaded.hf_config)
    again, info = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    save(tmp_path / "bare", config, loaded.params)
    assert load(tmp_path / "ours").config == config == load(tmp_path / "bare").config


def test_what_is_not_supported_is_named(tmp_path):
    build("variance too").save_pretrained(tmp_path)
    hf = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"activation_fn": "geglu"}, "activation_fn: 'geglu' is not supported, only 'gelu-approximate'"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine: True"),
        ({"attention_head_dim": 5}, "dit.width: 10 is not a multiple of num_heads 2 and of 4"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**hf, **change}))
        with pytest.raises(ConfigError, match=message):
            load(tmp_path)
