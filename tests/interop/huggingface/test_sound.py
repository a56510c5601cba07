"""Whisper's encoder and the audio spectrogram transformer against transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mmjax.config import ConfigError
from mmjax.interop.huggingface import load, model_of, save
from mmjax.interop.tensors import WeightsError

WHISPER = dict(
    d_model=30, encoder_layers=2, encoder_attention_heads=5, encoder_ffn_dim=44, decoder_layers=1,
    decoder_attention_heads=3, decoder_ffn_dim=20, num_mel_bins=7, max_source_positions=11, vocab_size=60,
    max_target_positions=9, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
)  # fmt: skip
AST = dict(hidden_size=30, num_hidden_layers=2, num_attention_heads=5, intermediate_size=44)


def whisper(cls=WhisperEncoder, **options):
    return cls(transformers.WhisperConfig(**{**WHISPER, **options}))


def ast(cls=transformers.ASTModel, **options):
    return cls(transformers.ASTConfig(**AST, **options))


ENCODERS = {
    "whisper": whisper,
    "whisper of one head": lambda: whisper(
        encoder_attention_heads=1, num_mel_bins=12, max_source_positions=8, activation_function="relu"
    ),
    "ast": lambda: ast(max_length=23, num_mel_bins=11, patch_size=5, frequency_stride=3, time_stride=4),
    "ast without qkv_bias": lambda: ast(
        max_length=16, num_mel_bins=16, patch_size=4, frequency_stride=4, time_stride=3, qkv_bias=False,
        hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-3,
    ),
}  # fmt: skip


def outputs(model, values):
    """What transformers gives for [B, frames, mel]."""
    values = torch.tensor(values)
    with torch.no_grad():
        if isinstance(model, transformers.ASTModel):
            out = model(input_values=values)
            return out.last_hidden_state, out.pooler_output
        return (model(input_features=values.transpose(1, 2)).last_hidden_state,)


def ours(config, params, values, dtype="float32"):
    out = jax.jit(model_of(config, dtype=dtype))(params, values)
    return tuple(out[name] for name in ("last_hidden_state", "pooled") if name in out)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(weights, parity, name):
    model = weights.randomised(ENCODERS[name]())
    loaded = weights.loaded(model)
    again = weights.again(loaded, type(model))
    values = weights.pixels(2, *loaded.config.item_shape)
    theirs, repeated = outputs(model, values), outputs(again, values)
    mine = ours(loaded.config, loaded.params, values)
    assert len(mine) == len(theirs)
    for reference, same, got in zip(theirs, repeated, mine, strict=True):
        assert torch.equal(reference, same)
        parity.close(got, reference)
    assert mine[0].shape[1] == loaded.config.num_tokens()
    half = ours(loaded.config, loaded.params, values, "bfloat16")[0]
    assert half.dtype == jnp.bfloat16
    gap = np.asarray(half, np.float32) - np.asarray(mine[0])
    assert 0 < np.sqrt(np.mean(gap**2)) < 0.03 * np.sqrt(np.mean(np.asarray(mine[0]) ** 2))


@pytest.mark.parametrize("cls", [transformers.WhisperModel, transformers.WhisperForConditionalGeneration])
def test_encoder_out_of_the_whole_whisper(weights, parity, cls):
    model = weights.randomised(whisper(cls))
    loaded = weights.loaded(model)
    assert any("decoder" in tensor for tensor in load_file(weights.place / "theirs" / "model.safetensors"))
    inner = model.get_encoder()
    values = weights.pixels(1, *loaded.config.item_shape)
    parity.close(ours(loaded.config, loaded.params, values)[0], outputs(inner, values)[0])
    save(weights.place / "ours", loaded.config, loaded.params, loaded.hf_config)
    again, info = WhisperEncoder.from_pretrained(weights.place / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(outputs(again.eval(), values)[0], outputs(inner, values)[0])
    assert again.config.decoder_layers == 1, "what config.json says of the decoder is kept"


def test_tower_out_of_a_classifier(weights, parity):
    sizes = dict(max_length=23, num_mel_bins=11, patch_size=5)
    model = weights.randomised(ast(transformers.ASTForAudioClassification, **sizes))
    loaded = weights.loaded(model)
    values = weights.pixels(1, *loaded.config.item_shape)
    for mine, theirs in zip(
        ours(loaded.config, loaded.params, values), outputs(model.audio_spectrogram_transformer, values), strict=True
    ):
        parity.close(mine, theirs)


def test_tensors_that_do_not_fit_are_listed(weights):
    weights.loaded(weights.randomised(whisper()))
    file = weights.place / "theirs" / "model.safetensors"
    tensors = load_file(file)
    del tensors["layers.1.fc1.bias"]
    tensors["layers.0.self_attn.k_proj.bias"] = np.zeros(30, np.float32)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WeightsError) as error:
        load(weights.place / "theirs")
    assert "1 missing:\n  layers.1.fc1.bias (44,)" in str(error.value)
    assert "1 left over:\n  layers.0.self_attn.k_proj.bias (30,)" in str(error.value)


def test_what_transformers_cannot_say_is_an_error(weights):
    loaded = weights.loaded(whisper())
    config = dataclasses.replace(loaded.config, norm_eps=1e-6)
    with pytest.raises(ConfigError, match="norm_eps 1e-05, this has 1e-06"):
        save(weights.place / "ours", config, loaded.params)
