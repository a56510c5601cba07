"""The families that are options of one vision transformer, against transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.vit import ViT
from mmjax.interop.huggingface import load, model_of, save
from mmjax.interop.huggingface.dinov2 import config_to_hf
from mmjax.interop.tensors import WeightsError

SIZES = dict(hidden_size=30, num_hidden_layers=2, num_attention_heads=5, image_size=31, patch_size=9)


def vit(**options):
    return transformers.ViTModel(transformers.ViTConfig(**SIZES, intermediate_size=44, **options))


def dinov2(**options):
    return transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, **options))


def registers(**options):
    config = transformers.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=3, **options)
    return transformers.Dinov2WithRegistersModel(config)


def blip2(**options):
    return transformers.Blip2VisionModel(
        transformers.Blip2VisionConfig(**SIZES, intermediate_size=44, **options)
    )


FAMILIES = {
    "vit": vit,
    "vit without qkv_bias": lambda: vit(qkv_bias=False, hidden_act="gelu_pytorch_tanh"),
    "dinov2": lambda: dinov2(mlp_ratio=2, layerscale_value=0.5),
    "dinov2 gated": lambda: dinov2(use_swiglu_ffn=True, use_mask_token=False, qkv_bias=False),
    "registers": registers,
    "registers gated": lambda: registers(use_swiglu_ffn=True),
    "blip2": blip2,
    "blip2 without qkv_bias": lambda: blip2(qkv_bias=False, layer_norm_eps=1e-3),
}


@pytest.mark.quick("dinov2 gated", "registers", "blip2")
@pytest.mark.parametrize("name", FAMILIES)
def test_tower(weights, parity, name):
    model = weights.randomised(FAMILIES[name]())
    weights.loaded(model)
    pixels = weights.pixels(2, 3, 31, 31)
    again = weights.again(load(weights.place / "theirs"), type(model))
    with torch.no_grad():
        theirs, repeated = (m(pixel_values=torch.tensor(pixels)) for m in (model, again))
    assert torch.equal(theirs.pooler_output, repeated.pooler_output)
    held = weights.model()
    mine = held(pixel_values=pixels)
    parity.close(mine.last_hidden_state, theirs.last_hidden_state)
    parity.close(mine.pooler_output, theirs.pooler_output)
    half = dataclasses.replace(held, dtype="bfloat16")(pixel_values=pixels)
    assert half.last_hidden_state.dtype == jnp.bfloat16
    gap = np.asarray(half.last_hidden_state, np.float32) - np.asarray(mine.last_hidden_state)
    assert 0 < np.sqrt(np.mean(gap**2)) < 0.03 * np.sqrt(np.mean(np.asarray(mine.last_hidden_state) ** 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "dinov2", "registers", "blip2"])
def test_other_image_sizes(weights, parity, name):
    model = weights.randomised(FAMILIES[name]())
    loaded = weights.loaded(model)
    config = loaded.config
    if config.resize_positions == "none":
        pixels = weights.pixels(1, 3, 31, 40)
        with pytest.raises(ValueError, match=r"31 x 40 pixels give 13 tokens \(3 x 4 patches\).*10 positions"):
            model_of(config)(loaded.params, pixels.transpose(0, 2, 3, 1))
        config = dataclasses.replace(config, resize_positions="bicubic")
        options = {"interpolate_pos_encoding": True}
    else:
        options = {}
    for height, width in ((45, 64), (9, 22)):
        pixels = weights.pixels(1, 3, height, width)
        with torch.no_grad():
            theirs = model(pixel_values=torch.tensor(pixels), **options)
        mine = jax.jit(model_of(config).__call__)(loaded.params, pixels.transpose(0, 2, 3, 1))
        parity.close(mine["last_hidden_state"], theirs.last_hidden_state)
        grid = (1, height // 9, width // 9)
        assert config.num_tokens(grid) == theirs.last_hidden_state.shape[1]


@pytest.mark.quick("registers")
@pytest.mark.parametrize("name", ["dinov2", "registers"])
def test_masked_patches_and_features(weights, parity, name):
    model = weights.randomised(FAMILIES[name]())
    loaded = weights.loaded(model)
    pixels = weights.pixels(2, 3, 31, 31)
    images = pixels.transpose(0, 2, 3, 1)
    masked = np.random.default_rng(0).random((2, 9)) < 0.5
    with torch.no_grad():
        theirs = model(torch.tensor(pixels), bool_masked_pos=torch.tensor(masked))
        states = model(torch.tensor(pixels), output_hidden_states=True).hidden_states
        normed = model.layernorm(states[-1])
    variables = {"params": loaded.params}
    mine = ViT(loaded.config).apply(variables, images, masked=masked, method="run")
    parity.close(mine["last_hidden_state"], theirs.last_hidden_state)

    leading = loaded.config.num_leading
    assert leading == (4 if name == "registers" else 1)
    for strategy, layers, norm, expected in (
        ("patches", (-2,), False, states[-2][:, leading:]),
        ("patches", (-1,), True, normed[:, leading:]),
        ("no_first", (0, -1), False, torch.cat([states[0], states[-1]], -1)[:, 1:]),
        ("full", (-1,), True, normed),
    ):
        config = dataclasses.replace(
            loaded.config, feature_strategy=strategy, feature_layers=layers, feature_norm=norm
        )
        out = ViT(config).apply(variables, Media(images[:, None], np.array([[1], [0]], np.int32)))
        parity.close(out.values, expected)
        assert out.values.shape[1:] == (config.num_tokens(), config.feature_width)
        assert out.segment_ids.shape == out.values.shape[:2] and not out.segment_ids[1].any()


def test_features_of_blip2_are_normed(weights, parity):
    model = weights.randomised(blip2())
    loaded = weights.loaded(model)
    pixels = weights.pixels(2, 3, 31, 31)
    with torch.no_grad():
        theirs = model(torch.tensor(pixels)).last_hidden_state
    values = pixels.transpose(0, 2, 3, 1)[None]
    out = ViT(loaded.config).apply({"params": loaded.params}, Media(values))
    parity.close(out.values, theirs.reshape(1, 2 * 10, 30))


@pytest.mark.parametrize("name", ["ViTForImageClassification", "Dinov2ForImageClassification"])
def test_checkpoint_of_a_classifier(weights, parity, name):
    config = transformers.ViTConfig if name.startswith("ViT") else transformers.Dinov2Config
    extra = {"intermediate_size": 44} if name.startswith("ViT") else {}
    model = weights.randomised(getattr(transformers, name)(config(**SIZES, **extra)))
    loaded = weights.loaded(model)
    pixels = weights.pixels(1, 3, 31, 31)
    body = model.vit if name.startswith("ViT") else model.dinov2
    with torch.no_grad():
        theirs = body(torch.tensor(pixels)).last_hidden_state
    mine = model_of(loaded.config)(loaded.params, pixels.transpose(0, 2, 3, 1))
    parity.close(mine["last_hidden_state"], theirs)
    assert loaded.config.pool == ("none" if name.startswith("ViT") else "class")
    if name.startswith("ViT"):
        save(weights.place / "ours", loaded.config, loaded.params)
        again, info = transformers.ViTModel.from_pretrained(
            weights.place / "ours", add_pooling_layer=False, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]


def test_names_in_memory_are_read_too(weights):
    for model in (vit(), dinov2()):
        loaded = weights.loaded(weights.randomised(model))
        arrays = {name: array.contiguous().numpy() for name, array in model.state_dict().items()}
        save_file(arrays, weights.place / "theirs" / "model.safetensors", {"format": "pt"})
        jax.tree.map(
            np.testing.assert_array_equal, load(weights.place / "theirs").params, loaded.params
        )


def test_what_does_not_fit_is_named(weights):
    loaded = weights.loaded(weights.randomised(dinov2()))
    path = weights.place / "theirs" / "model.safetensors"
    arrays = load_file(path)
    arrays["embeddings.extra"] = arrays.pop("layernorm.bias")
    save_file(arrays, path, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"(?s)missing.*layernorm\.bias.*left over.*embeddings\.extra"):
        load(weights.place / "theirs")
    for change, words in (
        ({"mlp_width": 31}, "mlp_width 31"),
        ({"pre_norm": True}, "pre_norm=False, this tower has pre_norm=True"),
        ({"num_registers": 2}, "num_registers=0"),
        ({"resize_positions": "none"}, "resize_positions"),
    ):
        with pytest.raises(ConfigError, match=words):
            config_to_hf(dataclasses.replace(loaded.config, **change))
    for change, words in (
        ({"pool": "dense", "final_norm": False}, "final_norm"),
        ({"keep_patches": 0.0}, "keep_patches"),
        ({"pool": "none", "final_norm": False, "feature_norm": True}, "feature_norm"),
        ({"class_token": False}, "class_token"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(loaded.config, **change)
