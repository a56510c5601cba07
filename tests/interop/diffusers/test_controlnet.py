"""ControlNetModel: the same residuals, and a UNet that takes them."""

import diffusers
import jax
import numpy as np
import pytest
import torch

from mmjax.config import ConfigError
from mmjax.generators.controlnet import ControlNet
from mmjax.interop.diffusers import controlnet, save
from mmjax.pipelines.component_model import load_component

SIZES = dict(
    block_out_channels=(8, 12), layers_per_block=1, norm_num_groups=4, cross_attention_dim=10,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=(2, 3),
)  # fmt: skip


def control(**options):
    torch.manual_seed(0)
    net = diffusers.ControlNetModel(**SIZES, conditioning_embedding_out_channels=(4, 6, 8), **options)
    # Zeros in a new one, so that it says nothing.
    for part in (net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def last(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * max(1.0, float(np.sqrt(np.mean(theirs**2))))


@pytest.mark.quick("order")
@pytest.mark.parametrize(
    "options",
    [
        dict(controlnet_conditioning_channel_order="bgr", use_linear_projection=True),
        dict(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=31),
    ],
    ids=["order", "sizes"],
)
def test_residuals_equal_theirs_and_a_unet_takes_them(options, tmp_path):
    theirs = control(**options)
    unet = {name: value for name, value in options.items() if not name.startswith("controlnet")}
    ups = tuple(name.replace("Down", "Up") for name in reversed(SIZES["down_block_types"]))
    torch.manual_seed(1)
    whole = diffusers.UNet2DConditionModel(**SIZES, **unet, up_block_types=ups).eval()
    theirs.save_pretrained(tmp_path / "control")
    whole.save_pretrained(tmp_path / "unet")
    draw = np.random.default_rng(0)
    x, text = draw.normal(size=(3, 4, 8, 12)).astype(np.float32), draw.normal(size=(3, 5, 10)).astype(np.float32)
    picture = draw.uniform(size=(3, 3, 32, 48)).astype(np.float32)
    given, added = {}, {}
    if "addition_embed_type" in options:
        pooled, sizes = draw.normal(size=(3, 7)).astype(np.float32), np.full((3, 6), 24.0, np.float32)
        given = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        added = {"added_cond_kwargs": {"text_embeds": torch.tensor(pooled), "time_ids": torch.tensor(sizes)}}
    with torch.no_grad():
        args = (torch.tensor(x), 321, torch.tensor(text))
        guessed = theirs(*args, torch.tensor(picture), conditioning_scale=0.7, guess_mode=True, **added)
        wanted = theirs(*args, torch.tensor(picture), conditioning_scale=0.7, **added)
        down, middle = wanted.down_block_res_samples, wanted.mid_block_res_sample
        both = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        drawn = last(whole(*args, **both, **added).sample)
        plain = last(whole(*args, **added).sample)
    assert np.abs(drawn - plain).max() > 0.01
    ours, net = load_component(tmp_path / "control"), load_component(tmp_path / "unet")
    mine = (np.moveaxis(x, 1, -1), 321, text)
    found = ours(*mine, np.moveaxis(picture, 1, -1), 0.7, **given)
    assert len(found.down_block_res_samples) == len(down)
    for one, other in zip((*found.down_block_res_samples, found.mid_block_res_sample), (*down, middle), strict=True):
        close(one, last(other))
    guess = ours(*mine, np.moveaxis(picture, 1, -1), 0.7, guess_mode=True, **given)
    others = (*guessed.down_block_res_samples, guessed.mid_block_res_sample)
    for one, other in zip((*guess.down_block_res_samples, guess.mid_block_res_sample), others, strict=True):
        close(one, last(other))
    residuals = (found.down_block_res_samples, found.mid_block_res_sample)
    got = net(
        *mine, down_block_additional_residuals=residuals[0], mid_block_additional_residual=residuals[1], **given
    ).sample  # fmt: skip
    close(got, drawn)
    with pytest.raises(ValueError, match=f"{len(down)} residuals for {len(down)} maps"):
        net(*mine, down_block_additional_residuals=down[1:], mid_block_additional_residual=middle, **given)
    save(tmp_path / "out", ours.config, ours.params, ours.hf_config)
    again = diffusers.ControlNetModel.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        close(found.mid_block_res_sample, last(again(*args, torch.tensor(picture), 0.7, **added).mid_block_res_sample))


def test_what_is_not_supported_is_named():
    with pytest.raises(ConfigError, match="global_pool_conditions: True"):
        controlnet.config_from_hf({**SIZES, "global_pool_conditions": True})
    with pytest.raises(ConfigError, match="channel_order: 'gbr'"):
        controlnet.config_from_hf({**SIZES, "controlnet_conditioning_channel_order": "gbr"})
    config = controlnet.config_from_hf({**SIZES, "num_attention_heads": [4, 6]})
    assert config.downsampling == 8 and not config.blue_first and config.num_heads == (4, 6)
    given = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((1, 4, 6, 4), (1,), (1, 32, 47, 3))]
    with pytest.raises(ValueError, match=r"the picture is \(1, 32, 47, 3\); wanted \(1, 32, 48, 3\)"):
        jax.eval_shape(lambda x, t, picture: ControlNet(config).init(jax.random.key(0), x, t, None, picture), *given)
