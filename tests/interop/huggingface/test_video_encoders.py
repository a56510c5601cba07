"""VideoMAE, ViViT and TimeSformer against transformers."""

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
from mmjax.encoders.timesformer import TimeSformer
from mmjax.interop.huggingface import load, model_of, save
from mmjax.interop.tensors import WeightsError

SIZES = dict(hidden_size=30, num_hidden_layers=2, num_attention_heads=5, intermediate_size=44)


def videomae(cls=transformers.VideoMAEModel, **options):
    sizes = dict(SIZES, image_size=13, patch_size=4, num_frames=5, tubelet_size=2)
    return cls(transformers.VideoMAEConfig(**{**sizes, **options}))


def vivit(cls=transformers.VivitModel, **options):
    sizes = dict(SIZES, image_size=11, num_frames=6, tubelet_size=[3, 5, 5])
    return cls(transformers.VivitConfig(**{**sizes, **options}))


def timesformer(cls=transformers.TimesformerModel, **options):
    sizes = dict(SIZES, image_size=11, patch_size=4, num_frames=3)
    return cls(transformers.TimesformerConfig(**{**sizes, **options}))


ENCODERS = {
    "videomae": videomae,
    "videomae, final norm": lambda: videomae(
        use_mean_pooling=False, hidden_size=27, num_attention_heads=3, tubelet_size=1, hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-3,
    ),
    "videomae without biases": lambda: videomae(qv_bias=False, num_frames=4, image_size=8),
    "vivit": vivit,
    "vivit without biases": lambda: vivit(
        qkv_bias=False, hidden_act="relu", num_frames=2, tubelet_size=[2, 4, 4], image_size=12
    ),
    "timesformer": timesformer,
    "timesformer, joint": lambda: timesformer(
        attention_type="joint_space_time", hidden_size=27, num_attention_heads=3, layer_norm_eps=1e-3
    ),
    "timesformer, space": lambda: timesformer(attention_type="space_only", hidden_act="gelu_pytorch_tanh"),
    "timesformer without biases": lambda: timesformer(qkv_bias=False, num_frames=1),
}  # fmt: skip


def outputs(model, videos, **options):
    """What transformers gives for videos [B, frames, H, W, 3]."""
    with torch.no_grad():
        out = model(pixel_values=torch.tensor(videos).permute(0, 1, 4, 2, 3), **options)
    pooled = getattr(out, "pooler_output", None)
    return (out.last_hidden_state,) if pooled is None else (out.last_hidden_state, pooled)


def ours(config, params, videos, *more, dtype="float32"):
    out = jax.jit(model_of(config, dtype=dtype))(params, videos, *more)
    return tuple(out[name] for name in ("last_hidden_state", "pooled") if name in out)


@pytest.mark.quick("videomae", "vivit", "timesformer")
@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(weights, parity, name):
    model = weights.randomised(ENCODERS[name]())
    loaded = weights.loaded(model)
    again = weights.again(loaded, type(model))
    videos = weights.pixels(2 if "without" not in name else 1, *loaded.config.item_shape)
    theirs, repeated = outputs(model, videos), outputs(again, videos)
    mine = ours(loaded.config, loaded.params, videos)
    assert len(mine) == len(theirs)
    for reference, same, got in zip(theirs, repeated, mine, strict=True):
        assert torch.equal(reference, same)
        parity.close(got, reference)
    assert mine[0].shape[0] * mine[0].shape[1] == len(videos) * loaded.config.num_tokens()
    if name not in ("videomae", "vivit", "timesformer"):
        return
    half = ours(loaded.config, loaded.params, videos, dtype="bfloat16")[0]
    assert half.dtype == jnp.bfloat16
    gap = np.asarray(half, np.float32) - np.asarray(mine[0])
    assert 0 < np.sqrt(np.mean(gap**2)) < 0.03 * np.sqrt(np.mean(np.asarray(mine[0]) ** 2))


def test_videomae_sees_what_is_kept(weights, parity):
    model = weights.randomised(videomae())
    loaded = weights.loaded(model)
    videos = weights.pixels(2, *loaded.config.item_shape)
    count = loaded.config.num_tokens()
    kept = np.sort(np.stack([np.random.default_rng(row).permutation(count)[:7] for row in range(2)]))
    masked = np.ones((2, count), bool)
    np.put_along_axis(masked, kept, False, axis=1)
    (theirs,) = outputs(model, videos, bool_masked_pos=torch.tensor(masked))
    (mine,) = ours(loaded.config, loaded.params, videos, kept)
    parity.close(mine, theirs)


def test_videomae_classifier_has_its_mean(weights, parity):
    model = weights.randomised(videomae(transformers.VideoMAEForVideoClassification))
    loaded = weights.loaded(model)
    assert loaded.config.pool == "mean"
    videos = weights.pixels(2, *loaded.config.item_shape)
    states, pooled = ours(loaded.config, loaded.params, videos)
    (theirs,) = outputs(model.videomae, videos)
    parity.close(states, theirs)
    with torch.no_grad():
        parity.close(pooled, model.fc_norm(theirs.mean(1)))
    save(weights.place / "ours", loaded.config, loaded.params, loaded.hf_config)
    again, info = type(model).from_pretrained(weights.place / "ours", output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}, "the head is no part of an encoder"
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.equal(outputs(again.eval().videomae, videos)[0], theirs)
    assert torch.equal(again.fc_norm.weight, model.fc_norm.weight)


@pytest.mark.parametrize("make", [
    lambda: videomae(transformers.VideoMAEForPreTraining, decoder_hidden_size=12, decoder_num_attention_heads=2,
                     decoder_num_hidden_layers=1, decoder_intermediate_size=9),
    lambda: vivit(transformers.VivitForVideoClassification),
    lambda: timesformer(transformers.TimesformerForVideoClassification),
])  # fmt: skip
def test_tower_out_of_a_model_with_a_head(weights, parity, make):
    model = weights.randomised(make())
    loaded = weights.loaded(model)
    assert getattr(loaded.config, "pool", "none") == "none"
    videos = weights.pixels(1, *loaded.config.item_shape)
    parity.close(ours(loaded.config, loaded.params, videos)[0], outputs(model.base_model, videos)[0])


@pytest.mark.slow
@pytest.mark.parametrize("attention_type, frames", [("divided_space_time", 5), ("joint_space_time", 2)])
def test_timesformer_of_other_videos(weights, parity, attention_type, frames):
    model = weights.randomised(timesformer(attention_type=attention_type))
    loaded = weights.loaded(model)
    videos = weights.pixels(1, frames, *loaded.config.item_shape[1:])
    # Their blocks ask the config how many frames there are.
    model.config.num_frames = frames
    (mine,) = ours(loaded.config, loaded.params, videos)
    parity.close(mine, outputs(model, videos)[0])
    assert mine.shape[1] == loaded.config.num_tokens((frames, 2, 2))


@pytest.mark.slow
def test_timesformer_features_are_frame_by_frame(weights):
    loaded = weights.loaded(weights.randomised(timesformer()))
    videos = weights.pixels(2, *loaded.config.item_shape)
    (states,) = ours(loaded.config, loaded.params, videos)
    patches = np.asarray(states)[:, 1:].reshape(2, 4, 3, 30)
    for strategy in ("full", "patches"):
        config = dataclasses.replace(loaded.config, feature_strategy=strategy)
        encode = jax.jit(TimeSformer(config).apply)
        features = encode({"params": loaded.params}, Media(videos[:, None])).values
        assert features.shape == (2, config.num_tokens(), 30)
        for frame in range(3):
            first = int(strategy == "full") + 4 * frame
            np.testing.assert_allclose(features[:, first : first + 4], patches[:, :, frame], rtol=1e-5, atol=1e-5)


def test_names_in_memory_are_read(weights):
    model = weights.randomised(videomae())
    loaded = weights.loaded(model)
    tensors = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in model.state_dict().items()}
    assert "encoder.layer.0.attention.attention.query.bias" in tensors
    save_file(tensors, weights.place / "theirs" / "model.safetensors", {"format": "pt"})
    jax.tree.map(np.testing.assert_array_equal, load(weights.place / "theirs").params, loaded.params)


def test_tensors_that_do_not_fit_are_listed(weights):
    weights.loaded(weights.randomised(videomae()))
    file = weights.place / "theirs" / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layer.1.attention.attention.v_bias"]
    tensors["encoder.layer.0.attention.attention.k_bias"] = np.zeros(30, np.float32)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WeightsError) as error:
        load(weights.place / "theirs")
    assert "1 missing:\n  encoder.layer.1.attention.attention.v_bias (30,)" in str(error.value)
    assert "1 left over:\n  encoder.layer.0.attention.attention.k_bias (30,)" in str(error.value)


def test_what_transformers_cannot_say_is_an_error(weights):
    loaded = weights.loaded(videomae())
    with pytest.raises(ConfigError, match="positions='learned'"):
        save(weights.place / "ours", dataclasses.replace(loaded.config, positions="learned"), loaded.params)
    loaded = weights.loaded(vivit())
    with pytest.raises(ConfigError, match="final_norm=False"):
        save(weights.place / "ours", dataclasses.replace(loaded.config, final_norm=False), loaded.params)
