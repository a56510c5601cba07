"""ConvNeXt, ConvNeXt V2, ResNet and Swin against transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import mmjax
from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders import ENCODERS
from mmjax.encoders.resnet import ResNetConfig
from mmjax.interop.huggingface import load, model_of, save

STAGES = dict(hidden_sizes=[8, 12, 20], depths=[2, 1, 3])


def convnext(**options):
    config = transformers.ConvNextConfig(**STAGES, num_stages=3, patch_size=3, image_size=41, **options)
    return transformers.ConvNextModel(config)


def convnextv2(**options):
    config = transformers.ConvNextV2Config(**STAGES, num_stages=3, patch_size=3, image_size=41, **options)
    return transformers.ConvNextV2Model(config)


def resnet(**options):
    config = transformers.ResNetConfig(embedding_size=8, **STAGES, **options)
    config.image_size = 41
    return transformers.ResNetModel(config)


def swin(**options):
    sizes = {"image_size": 41, "patch_size": 3, "embed_dim": 8, "window_size": 4, **options}
    return transformers.SwinModel(transformers.SwinConfig(depths=[2, 1], num_heads=[2, 4], **sizes))


MODELS = {
    "convnext": convnext,
    "convnext without scales": lambda: convnext(layer_scale_init_value=0.0, hidden_act="gelu_pytorch_tanh"),
    "convnextv2": convnextv2,
    "resnet": resnet,
    "resnet, early strides": lambda: resnet(downsample_in_first_stage=True, downsample_in_bottleneck=True),
    "resnet of basic layers": lambda: resnet(layer_type="basic"),
    "swin": swin,
    "swin with positions": lambda: swin(
        use_absolute_embeddings=True, qkv_bias=False, window_size=3, mlp_ratio=1.5, image_size=42
    ),
    "swin whose last map is one window": lambda: swin(window_size=7),
}


QUICK = ("resnet", "swin")


@pytest.mark.quick(*QUICK)
@pytest.mark.parametrize("name", MODELS)
def test_model(weights, parity, name):
    model = weights.randomised(MODELS[name]())
    loaded = weights.loaded(model)
    # Counters of batches are no parameters: transformers starts them at zero.
    again = weights.again(loaded, type(model), r".*\.num_batches_tracked")
    size = loaded.config.image_size
    held = weights.model()
    shapes = [(2, 3, size, size)]
    if "positions" not in name:
        shapes.append((1, 3, 38, 50))
    for shape in shapes:
        pixels = weights.pixels(*shape)
        with torch.no_grad():
            theirs, repeated = (m(pixel_values=torch.tensor(pixels)) for m in (model, again))
        assert torch.equal(theirs.last_hidden_state, repeated.last_hidden_state)
        mine = held(pixel_values=pixels)
        parity.close(mine.last_hidden_state, theirs.last_hidden_state)
        parity.close(mine.pooler_output, theirs.pooler_output)
    half = dataclasses.replace(held, dtype="bfloat16")(pixel_values=pixels)
    assert half.last_hidden_state.dtype == jnp.bfloat16
    gap = np.asarray(half.last_hidden_state, np.float32) - np.asarray(mine.last_hidden_state)
    assert 0 < np.sqrt(np.mean(gap**2)) < 0.03 * np.sqrt(np.mean(np.asarray(mine.last_hidden_state) ** 2))


@pytest.mark.quick("swin")
@pytest.mark.parametrize("name", ["swin", "convnextv2", "resnet"])
def test_maps_are_the_features(weights, parity, name):
    model = weights.randomised(MODELS[name]())
    loaded = weights.loaded(model)
    pixels = weights.pixels(4, 3, 41, 41)
    with torch.no_grad():
        if name == "swin":
            options = {"output_hidden_states_before_downsampling": True}
            out = model(torch.tensor(pixels), output_hidden_states=True, **options)
            states = [*out.reshaped_hidden_states[1:-1], out.last_hidden_state.transpose(1, 2).unflatten(2, (7, 7))]
        else:
            states = model(torch.tensor(pixels), output_hidden_states=True).hidden_states[1:]
    count = len(states)
    config = dataclasses.replace(loaded.config, feature_stages=(0, -1))
    images = pixels.transpose(0, 2, 3, 1).reshape(2, 2, 41, 41, 3)
    segments = np.array([[1, 2], [1, 0]], np.int32)
    module = ENCODERS[type(config)](config)
    out = module.apply({"params": loaded.params}, Media(images, segments))

    def rows(state):
        return state.flatten(2).transpose(1, 2).reshape(2, -1, state.shape[1])

    parity.close(out.values, rows(states[count - 1]))
    parity.close(out.extra_features["stage_0"], rows(states[0]))
    assert set(out.extra_features) == {"stage_0"} and out.stage == "encoded"
    assert out.values.shape == (2, 2 * config.num_tokens(), config.feature_width)
    assert config.grid_sizes == tuple(state.shape[2] for state in states)
    np.testing.assert_array_equal(out.segment_ids, np.repeat(segments, config.num_tokens(), axis=1))
    with pytest.raises(ValueError, match="40 x 41 pixels for an encoder whose features are counted for 41 x 41"):
        module.apply({"params": loaded.params}, Media(images[:, :, :-1]))
    early = dataclasses.replace(config, feature_stages=(0,))
    assert (early.feature_width, early.num_tokens()) == (states[0].shape[1], states[0].shape[2] ** 2)


def test_an_mmjax_directory_of_an_encoder_alone(weights):
    weights.loaded(weights.randomised(swin()))
    held = weights.model()
    held.save_pretrained(weights.place / "mmjax", format="mmjax")
    again = mmjax.from_pretrained(weights.place / "mmjax")
    assert again.config == held.config
    jax.tree.map(np.testing.assert_array_equal, again.params, held.params)


def test_checkpoint_of_a_classifier(weights):
    config = transformers.ResNetConfig(embedding_size=8, **STAGES)
    loaded = weights.loaded(weights.randomised(transformers.ResNetForImageClassification(config)))
    assert loaded.config.image_size == 224
    assert load(weights.place / "theirs").config == loaded.config


def test_what_does_not_fit_is_named(weights):
    loaded = weights.loaded(weights.randomised(swin(use_absolute_embeddings=True, image_size=42)))
    with pytest.raises(ValueError, match=r"13 x 16 patches, but .* 14 x 14 \(42 x 42 pixels\)"):
        model_of(loaded.config)(loaded.params, np.zeros((1, 38, 47, 3), np.float32))
    with pytest.raises(ConfigError, match="window_size 8 is larger than a map.*14, 7"):
        dataclasses.replace(loaded.config, window_size=8)
    with pytest.raises(ConfigError, match="image_size 41 is not a multiple of patch_size 3"):
        dataclasses.replace(loaded.config, image_size=41)
    with pytest.raises(ConfigError, match="depths has 1, num_heads has 2"):
        dataclasses.replace(loaded.config, depths=(2,))
    with pytest.raises(ConfigError, match="feature_stages: 2 is not among the 2 stages"):
        dataclasses.replace(loaded.config, feature_stages=(2,))
    odd = dataclasses.replace(ResNetConfig(widths=(8,), depths=(1,)), norm_eps=1e-3)
    with pytest.raises(ConfigError, match="norm_eps 1e-05, this has 0.001"):
        save(weights.place / "x", odd, model_of(odd).param_shapes())
    path = weights.place / "theirs" / "config.json"
    path.write_text(path.read_text().replace('"image_size": 42', '"image_size": [42, 30]'))
    with pytest.raises(ConfigError, match=r"image_size \[42, 30\] is not square"):
        load(weights.place / "theirs")
