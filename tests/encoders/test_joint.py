"""ImageBind's six towers against a slow one in torch, whose attention is torch.nn.MultiheadAttention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.encoders.imagebind import ImageBindTowerConfig
from mmjax.encoders.joint import ImageBind, ImageBindConfig, imagebind_huge
from mmjax.encoders.text import TextEncoderConfig
from mmjax.interop.imagebind import STEMS, export_imagebind
from mmjax.paths import flatten

CONFIG = ImageBindConfig(
    {
        "vision": ImageBindTowerConfig(
            "vision", (1, 9, 13, 3), (2, 4, 4), 12, 2, 3, 20, 7, patch_norm=False, pre_norm=True, extra_key=False
        ),
        "audio": ImageBindTowerConfig(
            "audio", (15, 11), (4, 4), 10, 1, 2, 16, 7, stride=(3, 3), clips=2, logit_scale=20.0
        ),
        "depth": ImageBindTowerConfig("depth", (9, 8, 1), (4, 4), 6, 1, 2, 12, 7, logit_scale=5.0),
        "thermal": ImageBindTowerConfig("thermal", (8, 12, 1), (4, 4), 8, 2, 4, 12, 7, logit_scale=10.0),
        "imu": ImageBindTowerConfig("imu", (13, 6), (4,), 12, 2, 3, 8, 7, logit_scale=5.0),
    },
    TextEncoderConfig(31, 12, 2, 3, 16, max_positions=9, activation="gelu", norm_eps=1e-6, projection_dim=7),
)


def randomised(config, seed=0):
    """Params whose every leaf matters."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        shift = {"scale": 1.0, "logit_scale": 2.0, "text_scale": 1.5}.get(path[-1].key, 0.0)
        return np.asarray(shift + 0.4 * rng.normal(size=leaf.shape), np.float32)

    return jax.tree_util.tree_map_with_path(draw, ImageBind(config).param_shapes())


def inputs_of(config, batch=3, seed=1):
    rng = np.random.default_rng(seed)
    found = {n: rng.normal(size=(batch, *t.item_shape)).astype(np.float32) for n, t in config.media.items()}
    if config.text is not None:
        found["text"] = rng.integers(0, config.text.vocab_size - 1, (batch, 8))
        found["text"][np.arange(batch), [3, 7, 5][:batch]] = config.text.vocab_size - 1
    return found


def slow_trunk(w, name, x, heads, extra, mask=None):
    """Tokens [B, N, D] through the blocks, with torch's own attention."""
    prefix, layer = f"modality_trunks.{name}.", 0
    if f"{prefix}pre_transformer_layer.0.weight" in w:
        x = slow_norm(w, f"{prefix}pre_transformer_layer.0", x)
    while f"{prefix}blocks.{layer}.norm_1.weight" in w:
        block = f"{prefix}blocks.{layer}."
        attention = torch.nn.MultiheadAttention(x.shape[-1], heads, add_bias_kv=extra, batch_first=True)
        own = {key.removeprefix(f"{block}attn."): leaf for key, leaf in w.items() if key.startswith(f"{block}attn.")}
        attention.load_state_dict(own)
        h = slow_norm(w, f"{block}norm_1", x)
        x = x + attention(h, h, h, need_weights=False, attn_mask=mask)[0]
        h = F.linear(slow_norm(w, f"{block}norm_2", x), w[f"{block}mlp.fc1.weight"], w[f"{block}mlp.fc1.bias"])
        x = x + F.linear(F.gelu(h), w[f"{block}mlp.fc2.weight"], w[f"{block}mlp.fc2.bias"])
        layer += 1
    return x


def slow_norm(w, name, x, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def slow_scaled(w, name, x):
    x = x / x.norm(dim=-1, keepdim=True)
    scale = w.get(f"modality_postprocessors.{name}.1.log_logit_scale")
    return x if scale is None else x * scale.exp().clip(max=100)


def slow_clips(w, name, c, clips):
    """Clips [B, *clip_shape] of one modality -> [B, E]."""
    before = f"modality_preprocessors.{name}."
    kernel = w[f"{before}{STEMS[name]}.weight"]
    if name == "vision":
        frames = clips.movedim(-1, 1)
        frames = frames.repeat(1, 1, 2, 1, 1) if frames.shape[2] == 1 else frames
        x = F.conv3d(frames, kernel, stride=c.window).flatten(2).transpose(1, 2)
    elif name == "imu":
        windows = [clips[:, at : at + 4].transpose(1, 2).flatten(1) for at in range(0, clips.shape[1] - 3, 4)]
        x = F.linear(torch.stack(windows, dim=1), kernel)
    else:
        images = clips.transpose(1, 2)[:, None] if name == "audio" else clips.movedim(-1, 1)
        x = F.conv2d(images, kernel, stride=c.stride or c.window).flatten(2).transpose(1, 2)
    norm = f"{before}{STEMS[name].split('.')[0]}.norm_layer"
    if f"{norm}.weight" in w:
        x = slow_norm(w, norm, x, 1e-5)
    places = w[before + ("pos_embed" if name == "imu" else "pos_embedding_helper.pos_embed")]
    x = torch.cat([w[f"{before}cls_token"].expand(len(x), -1, -1), x], dim=1) + places
    x = slow_trunk(w, name, x, c.num_heads, c.extra_key)
    head = f"modality_heads.{name}."
    x = slow_norm(w, f"{head}0", x)[:, 0]
    return slow_scaled(w, name, F.linear(x, w[f"{head}{3 if name == 'imu' else 2}.weight"]))


def slow_text(w, c, tokens):
    before, length = "modality_preprocessors.text.", tokens.shape[1]
    x = w[f"{before}token_embedding.weight"][tokens] + w[f"{before}pos_embed"][:, :length]
    x = slow_trunk(w, "text", x, c.num_heads, False, w[f"{before}mask"][:length, :length])
    x = slow_norm(w, "modality_heads.text.proj.0", x[torch.arange(len(x)), tokens.argmax(-1)])
    return slow_scaled(w, "text", F.linear(x, w["modality_heads.text.proj.1.weight"]))


def slow(w, config, inputs):
    out = {}
    for name, values in inputs.items():
        values = torch.tensor(values)
        if name == "text":
            out[name] = slow_text(w, config.text, values)
            continue
        tower = config.media[name]
        clips = slow_clips(w, name, tower, values.reshape(-1, *tower.clip_shape))
        out[name] = clips.reshape(len(values), tower.clips, -1).mean(1)
    return {name: vectors.detach().numpy() for name, vectors in out.items()}


def check(config):
    params, inputs = randomised(config), inputs_of(config)
    out = jax.jit(ImageBind(config).__call__)(params, inputs)
    w = {name: torch.tensor(leaf) for name, leaf in export_imagebind(params, config).items()}
    expected = slow(w, config, inputs)
    assert set(out) == set(expected)
    for name, vectors in expected.items():
        assert vectors.shape == (3, 7)
        bound = 1e-4 * max(1.0, float(np.sqrt(np.mean(vectors**2))))
        np.testing.assert_allclose(out[name], vectors, rtol=0, atol=bound, err_msg=name)


def test_all_towers():
    assert from_dict(ImageBindConfig, to_dict(CONFIG)) == CONFIG
    check(CONFIG)


def test_video_in_clips():
    # Two clips of four frames, the patches two frames long.
    tower = dataclasses.replace(CONFIG.media["vision"], clip_shape=(4, 9, 13, 3), clips=2)
    assert tower.num_patches == 2 * 2 * 3
    check(ImageBindConfig({"vision": tower}))


def test_large_scales_are_cut_off():
    config = ImageBindConfig({"depth": CONFIG.media["depth"]})
    params = randomised(config)
    params["depth"]["logit_scale"] = jnp.float32(6)
    out = jax.jit(ImageBind(config).__call__)(params, inputs_of(config))["depth"]
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 100, rtol=1e-5)


@pytest.mark.slow
def test_axes_and_fresh_params():
    model = ImageBind(CONFIG)
    shapes, axes = flatten(model.param_shapes()), flatten(model.param_axes())
    assert {path: leaf.ndim for path, leaf in shapes.items()} == {path: len(names) for path, names in axes.items()}
    params = jax.jit(ImageBind(ImageBindConfig({"audio": CONFIG.media["audio"]}, CONFIG.text)).init)(jax.random.key(0))
    np.testing.assert_allclose(np.exp(params["audio"]["logit_scale"]), 20, rtol=1e-5)
    np.testing.assert_allclose(np.exp(params["text_scale"]), 1 / 0.07, rtol=1e-5)


@pytest.mark.slow
def test_the_published_sizes():
    config = imagebind_huge()
    shapes = flatten(jax.eval_shape(ImageBind(config).init, jax.random.key(0)))
    # Tokens with the class token: 16 x 16 patches, 12 x 19 overlapping ones, 14 x 14, 2000 / 8 windows.
    counts = {"vision": 257, "audio": 229, "depth": 197, "thermal": 197, "imu": 251}
    assert {name: shapes[f"{name}/position_embedding"].shape[0] for name in counts} == counts
    assert shapes["vision/patch_embed/kernel"].shape == (2, 14, 14, 3, 1280)
    assert shapes["imu/patch_embed/kernel"].shape == (8, 6, 512)
    assert shapes["text/embed/embedding"].shape == (49408, 1024)
    total = sum(int(np.prod(leaf.shape)) for leaf in shapes.values())
    assert 1.19e9 < total < 1.21e9


def test_errors():
    with pytest.raises(ConfigError, match='the tower "depth" is one of thermal'):
        ImageBindConfig({"depth": CONFIG.media["thermal"]})
    with pytest.raises(ConfigError, match="must have one width"):
        ImageBindConfig(CONFIG.media, dataclasses.replace(CONFIG.text, projection_dim=8))
    with pytest.raises(KeyError, match="text"):
        ImageBind(ImageBindConfig(CONFIG.media)).tower("text")
