"""The whole of CLAP against transformers: both towers, their projections, and the scales of both directions."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import mmjax
from mmjax.config import ConfigError
from mmjax.encoders.dual import Tower
from mmjax.encoders.sound_text import SoundText, SoundTextConfig
from mmjax.interop.huggingface import clap_pair, load, model_of, save
from mmjax.interop.tensors import WeightsError
from mmjax.paths import flatten
from mmjax.recipes.assemble import _tower

AUDIO = dict(
    spec_size=32, num_mel_bins=16, patch_size=2, patch_stride=[2, 2], patch_embeds_hidden_size=6, depths=[2, 1],
    num_attention_heads=[2, 3], window_size=4, hidden_size=12,
)  # fmt: skip
TEXT = dict(
    vocab_size=23, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=10,
    max_position_embeddings=14, pad_token_id=2,
)  # fmt: skip
COMPUTED = r"(.*\.)?(num_batches_tracked|relative_position_index|position_ids|token_type_ids)"


def whole(audio=(), **options):
    config = transformers.ClapConfig(
        text_config=TEXT, audio_config={**AUDIO, **dict(audio)}, **{"projection_dim": 10, **options}
    )
    return transformers.ClapModel(config)


def inputs(config, sounds, texts, longer=False):
    """Sounds as the processor gives them, and texts, of which the last is padded on the right."""
    values = 5 * np.random.default_rng(3).normal(size=(sounds, *config.audio.item_shape)).astype(np.float32) - 20
    tokens = np.random.default_rng(4).integers(3, 23, (texts, 9))
    mask = np.ones(tokens.shape, np.int64)
    tokens[-1, 5:], mask[-1, 5:] = config.text.pad_id, 0
    given = {"input_features": values, "input_ids": tokens, "attention_mask": mask}
    return {**given, "is_longer": np.arange(sounds)[:, None] % 2 == 0} if longer else given


@pytest.mark.parametrize("fusion", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_texts_and_sounds_are_compared_as_there(weights, parity, fusion):
    theirs = whole({"enable_fusion": fusion, "patch_size": 4} if fusion else {}, projection_hidden_act="gelu")
    theirs = weights.randomised(theirs)
    assert theirs.logit_scale_a != theirs.logit_scale_t
    loaded = weights.loaded(theirs)
    assert loaded.config.audio.projection_activation == loaded.config.text.projection_activation == "gelu"
    again = weights.again(loaded, transformers.ClapModel, COMPUTED)
    given = inputs(loaded.config, 3, 2, fusion)
    out = weights.model()(**given)
    names = ("logits_per_audio", "logits_per_text", "audio_embeds", "text_embeds")
    with torch.no_grad():
        wanted = [model(**{name: torch.tensor(value) for name, value in given.items()}) for model in (theirs, again)]
    for name in names:
        parity.close(getattr(out, name), wanted[0][name])
        assert torch.equal(wanted[0][name], wanted[1][name])
    assert out.logits_per_audio.shape == (3, 2) and out.logits_per_image is None


@pytest.fixture
def loaded(weights):
    return weights.loaded(weights.randomised(whole()))


def test_either_tower_out_of_the_whole(weights, parity, loaded):
    c, params = loaded.config, loaded.params
    shapes, axes = SoundText(c).param_shapes(), flatten(SoundText(c).param_axes())
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert axes.keys() == flatten(params).keys() and axes["logit_scale_text"] == ()
    save(weights.place / "audio", c.audio, params["audio"])
    save(weights.place / "text", c.text, params["text"])
    given = inputs(c, 2, 2)
    for name, cls, values in (
        ("audio", transformers.ClapAudioModelWithProjection, given["input_features"]),
        ("text", transformers.ClapTextModelWithProjection, given["input_ids"]),
    ):
        model, info = cls.from_pretrained(weights.place / name, output_loading_info=True)
        assert not info["unexpected_keys"] and not info["mismatched_keys"]
        with torch.no_grad():
            wanted = model.eval()(torch.tensor(values))[f"{name}_embeds"]
        parity.close(jax.jit(Tower(getattr(c, name)))(params[name], values)["embeds"], wanted)
        # As a part of a system it begins with the whole's weights, and leaves out what it has no use for.
        plain = dataclasses.replace(getattr(c, name), projection_dim=None)
        given_to = _tower(SimpleNamespace(param_dtype="float32"), "port", str(weights.place / "theirs"), plain)
        assert flatten(given_to).keys() == flatten(Tower(plain).param_shapes()).keys()
        for path, leaf in flatten(given_to).items():
            np.testing.assert_array_equal(leaf, flatten(params[name])[path])


def test_own_format_and_bfloat16(weights, loaded):
    model = weights.model()
    model.save_pretrained(weights.place / "own", format="mmjax")
    again = mmjax.from_pretrained(weights.place / "own")
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    half = SoundText(loaded.config, "bfloat16")
    given = inputs(loaded.config, 2, 3)
    values = given["input_ids"], given["attention_mask"] > 0, given["input_features"]
    out, exact = (jax.jit(way)(loaded.params, *values) for way in (half, SoundText(loaded.config)))
    gap = np.asarray(out["audio_embeds"] - exact["audio_embeds"])
    assert out["logits_per_text"].dtype == np.float32 and 0 < np.sqrt(np.mean(gap**2)) < 0.03


def test_what_does_not_fit_is_named(weights, loaded):
    c = loaded.config
    with pytest.raises(ConfigError, match="projection_dim of the towers must be one number, got 10 of audio and 7"):
        SoundTextConfig(c.audio, dataclasses.replace(c.text, projection_dim=7))
    odd = dataclasses.replace(c, text=dataclasses.replace(c.text, projection_activation="gelu"))
    with pytest.raises(ConfigError, match="one projection_hidden_act; the audio tower has 'relu'"):
        save(weights.place / "odd", odd, SoundText(odd).param_shapes())
    with pytest.raises(ValueError, match="this model needs input_ids and one of"):
        weights.model()(input_features=inputs(c, 1, 1)["input_features"])
    file = weights.place / "theirs" / "model.safetensors"
    tensors = load_file(file)
    tensors["text_projection.linear3.bias"] = tensors.pop("logit_scale_a")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WeightsError) as error:
        load(weights.place / "theirs")
    assert "1 missing:\n  logit_scale_a ()" in str(error.value)
    assert "1 left over:\n  text_projection.linear3.bias ()" in str(error.value)


def test_defaults_are_those_of_the_published_model():
    shapes = model_of(clap_pair.config_from_hf({"model_type": "clap"})).param_shapes()
    with torch.device("meta"):
        theirs = transformers.ClapModel(transformers.ClapConfig())
    # Of the batch norm of 64 mel bands, the statistics are no parameters there.
    count = sum(leaf.numel() for leaf in theirs.parameters()) + 2 * 64
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
