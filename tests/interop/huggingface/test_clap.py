"""CLAP's audio tower against transformers, alone and with its projection."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from mmjax.config import ConfigError
from mmjax.data.contracts import Media
from mmjax.encoders.clap import CLAP, LONGER
from mmjax.interop.huggingface import load, model_of
from mmjax.interop.tensors import WeightsError

SIZES = dict(
    spec_size=32, num_mel_bins=16, patch_size=2, patch_stride=[2, 2], patch_embeds_hidden_size=6, depths=[2, 1],
    num_attention_heads=[2, 3], window_size=4, hidden_size=12, projection_dim=10,
)  # fmt: skip
# Buffers that transformers computes or counts anew.
COMPUTED = r".*\.(num_batches_tracked|relative_position_index)"


def tower(cls=transformers.ClapAudioModel, frames=53, **options):
    config = transformers.ClapAudioConfig(**{**SIZES, **options})
    config.num_frames = frames
    return cls(config)


PROJECTED = transformers.ClapAudioModelWithProjection
MODELS = {
    "tower": tower,
    "tower with wide patches": lambda: tower(
        frames=64, patch_size=4, enable_patch_layer_norm=False, qkv_bias=False, layer_norm_eps=1e-3,
        mlp_ratio=1.5, window_size=3, hidden_act="gelu_pytorch_tanh",
    ),
    # A model of theirs can stretch one axis or the other, not both.
    "tower with its projection": lambda: tower(PROJECTED, frames=64, num_mel_bins=13, projection_hidden_act="gelu"),
    "fusion": lambda: tower(PROJECTED, enable_fusion=True, patch_size=4, aff_block_r=3),
}  # fmt: skip


def theirs(model, values, longer=None):
    with torch.no_grad():
        out = model(torch.tensor(values), is_longer=None if longer is None else torch.tensor(longer))
    # [B, D, frequency, time] -> what tokens are.
    found = {"last_hidden_state": out.last_hidden_state.flatten(2).transpose(1, 2)}
    for ours, name in (("pooled", "pooler_output"), ("embeds", "audio_embeds")):
        if getattr(out, name, None) is not None:
            found[ours] = getattr(out, name)
    return found


@pytest.mark.quick("fusion")
@pytest.mark.parametrize("name", MODELS)
def test_tower(weights, parity, name):
    model = weights.randomised(MODELS[name]())
    loaded = weights.loaded(model)
    again = weights.again(loaded, type(model), COMPUTED)
    c = loaded.config
    values = 5 * weights.pixels(3, *c.item_shape) - 20
    longer = np.array([[True], [False], [True]]) if c.fusion else None
    reference, repeated = theirs(model, values, longer), theirs(again, values, longer)
    mine = jax.jit(model_of(c))(loaded.params, values, longer)
    for key, wanted in reference.items():
        assert torch.equal(wanted, repeated[key])
        parity.close(mine[key], wanted)
    assert set(mine) - {"pooled"} == set(reference) - {"pooled"}
    assert mine["last_hidden_state"].shape[1:] == (c.num_tokens(), c.feature_width)
    np.testing.assert_allclose(mine["pooled"], mine["last_hidden_state"].mean(1), atol=1e-5)


@pytest.mark.slow
def test_fusion_of_the_items_that_are_longer(weights, parity):
    model = weights.randomised(tower(enable_fusion=True))
    loaded = weights.loaded(model)
    values = weights.pixels(2, 2, *loaded.config.item_shape)
    longer = np.array([[True, False], [False, True]])
    apply = jax.jit(CLAP(loaded.config).apply)
    segments = np.array([[1, 2], [1, 0]], np.int32)
    out = apply({"params": loaded.params}, Media(values, segments, extra_features={LONGER: longer}))
    rows = values.reshape(4, *values.shape[2:])
    count = loaded.config.num_tokens()
    wanted = theirs(model, rows, longer.reshape(4, 1))["last_hidden_state"]
    parity.close(out.values.reshape(4, count, -1), wanted)
    np.testing.assert_array_equal(out.segment_ids, np.repeat(segments, count, axis=1))
    none = apply({"params": loaded.params}, Media(values, segments))
    parity.close(none.values.reshape(4, count, -1), theirs(model, rows, np.zeros((4, 1), bool))["last_hidden_state"])
    assert np.abs(none.values - out.values).max() > 1e-2
    half = jax.jit(CLAP(loaded.config, jnp.bfloat16).apply)({"params": loaded.params}, Media(values, segments)).values
    assert half.dtype == jnp.bfloat16
    gap = np.asarray(half, np.float32) - np.asarray(none.values)
    assert 0 < np.sqrt(np.mean(gap**2)) < 0.03 * np.sqrt(np.mean(np.asarray(none.values) ** 2))


def test_what_does_not_fit_is_named(weights):
    loaded = weights.loaded(weights.randomised(tower()))
    file = weights.place / "theirs" / "model.safetensors"
    tensors = load_file(file)
    del tensors["audio_encoder.batch_norm.running_var"]
    tensors["audio_projection.linear1.bias"] = np.zeros(3, np.float32)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WeightsError) as error:
        load(weights.place / "theirs")
    assert "1 missing:\n  audio_encoder.batch_norm.running_var (16,)" in str(error.value)
    assert "1 left over:\n  audio_projection.linear1.bias (3,)" in str(error.value)
    path = weights.place / "theirs" / "config.json"
    hf = json.loads(path.read_text())
    for change, words in (
        ({"enable_fusion": True, "fusion_type": "channel_map"}, "channel_map.* is not supported"),
        ({"patch_embed_input_channels": 3}, "patch_embed_input_channels 3 is not supported, only 1"),
        ({"flatten_patch_embeds": False}, "flatten_patch_embeds False is not supported"),
        ({"patch_stride": [2, 4]}, "patch_stride .* is not square"),
    ):
        path.write_text(json.dumps({**hf, **change}))
        with pytest.raises(ConfigError, match=words):
            load(weights.place / "theirs")
    for change, words in (
        ({"projection_activation": "gelo"}, "clap_audio.projection_activation"),
        ({"num_mels": 33}, "num_mels 33: image_size 32 must be at least that"),
        ({"num_mels": 9}, "num_mels 9: image_size 32 .* a multiple of how often it holds them, 3"),
        ({"num_frames": 65}, r"num_frames 65 must be in 1\.\.64"),
        ({"patch_size": 3}, "patch_size 3 must be patch_stride 2 or an even number more"),
        ({"num_mels": 2}, "image_size 32 must be a multiple of 4, its quotient one of 16"),
        ({"window_size": 9}, "window_size 9 is larger than a map"),
        ({"fusion": True, "fusion_reduction": 7}, r"fusion_reduction must be in 1\.\.width 6, got 7"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(loaded.config, **change)
    values = np.zeros((1, 1, 53, 16), np.float32)
    with pytest.raises(ValueError, match=r"\(1, 52, 16\), but the encoder takes \(1, 53, 16\)"):
        model_of(loaded.config)(loaded.params, values[:, :, 1:])
    with pytest.raises(ValueError, match="longer needs an encoder with fusion"):
        model_of(loaded.config)(loaded.params, values, np.ones(1, bool))
