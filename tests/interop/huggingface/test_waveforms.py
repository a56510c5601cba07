"""wav2vec 2.0 and HuBERT against transformers."""

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
from mmjax.interop.huggingface import load, model_of, save
from mmjax.interop.tensors import WeightsError

SIZES = dict(
    hidden_size=30, num_hidden_layers=2, num_attention_heads=5, intermediate_size=44, conv_dim=[7, 9, 11],
    conv_kernel=[7, 3, 2], conv_stride=[4, 2, 1], num_conv_pos_embeddings=6, num_conv_pos_embedding_groups=3,
)  # fmt: skip
LARGE = dict(feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True)


def wav2vec2(cls=transformers.Wav2Vec2Model, **options):
    return cls(transformers.Wav2Vec2Config(**{**SIZES, **options}))


def hubert(cls=transformers.HubertModel, **options):
    return cls(transformers.HubertConfig(**{**SIZES, **options}))


MODELS = {
    "wav2vec2": wav2vec2,
    "wav2vec2, large": lambda: wav2vec2(**LARGE, num_conv_pos_embeddings=5, layer_norm_eps=1e-3),
    "wav2vec2 without a mask": lambda: wav2vec2(
        mask_time_prob=0.0, hidden_act="relu", feat_extract_activation="gelu_pytorch_tanh", conv_bias=True
    ),
    "hubert": lambda: hubert(num_attention_heads=1, num_conv_pos_embedding_groups=1),
    "hubert, large": lambda: hubert(**LARGE, feat_proj_layer_norm=False),
    "hubert with a batch norm": lambda: hubert(conv_pos_batch_norm=True, num_conv_pos_embeddings=7),
}
# Samples of three rows: the second has a single frame, the last one is whole.
LENGTHS = (57, 23, 101)


def sound(*lengths):
    """Samples and mask [B, longest], padding on the right."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int32)
    samples = np.random.default_rng(4).normal(size=mask.shape).astype(np.float32)
    return np.where(mask, samples, 0).astype(np.float32), mask


def theirs(model, *arrays, **more):
    with torch.no_grad():
        names = ("input_values", "attention_mask")
        inputs = {name: torch.tensor(array) for name, array in zip(names, arrays, strict=False)}
        return model(**inputs, **{name: torch.tensor(array) for name, array in more.items()})


@pytest.mark.quick("wav2vec2", "hubert, large")
@pytest.mark.parametrize("name", MODELS)
def test_model(weights, parity, name):
    model = weights.randomised(MODELS[name]())
    loaded = weights.loaded(model)
    # Counters of batches are no parameters: transformers starts them at zero.
    again = weights.again(loaded, type(model), r".*\.num_batches_tracked")
    samples, mask = sound(*LENGTHS)
    run = jax.jit(model_of(loaded.config))
    mine, reference = run(loaded.params, samples, mask), theirs(model, samples, mask)
    parity.close(mine["last_hidden_state"], reference.last_hidden_state)
    if "wav2vec2" in name:
        parity.close(mine["extract_features"], reference.extract_features)
    assert torch.equal(theirs(again, samples, mask).last_hidden_state, reference.last_hidden_state)
    assert mine["seen"].sum(1).tolist() == model._get_feat_extract_output_lengths(torch.tensor(LENGTHS)).tolist()
    assert mine["seen"].shape[1] == dataclasses.replace(loaded.config, num_samples=101).num_tokens()
    if name in ("wav2vec2", "hubert, large"):
        alone = samples[2:, :83]
        parity.close(run(loaded.params, alone)["last_hidden_state"], theirs(model, alone).last_hidden_state)


@pytest.mark.slow
def test_masked_frames_and_bfloat16(weights, parity):
    model = weights.randomised(wav2vec2(**LARGE))
    loaded = weights.loaded(model)
    samples, mask = sound(90, 77)
    run = lambda dtype, *more: jax.jit(model_of(loaded.config, dtype=dtype))(loaded.params, samples, mask, *more)
    plain = np.asarray(run("float32")["last_hidden_state"])
    masked = np.random.default_rng(1).random(plain.shape[:2]) < 0.4
    reference = theirs(model, samples, mask, mask_time_indices=masked).last_hidden_state
    mine = run("float32", masked)["last_hidden_state"]
    parity.close(mine, reference)
    assert np.abs(mine - plain).max() > 0.1
    half = run("bfloat16")["last_hidden_state"]
    assert half.dtype == jnp.bfloat16
    gap = np.asarray(half, np.float32) - plain
    assert 0 < np.sqrt(np.mean(gap**2)) < 0.03 * np.sqrt(np.mean(plain**2))


@pytest.mark.parametrize("cls", [transformers.Wav2Vec2ForCTC, transformers.HubertForCTC])
def test_checkpoint_of_a_model_with_a_head(weights, parity, cls):
    make, inner = (wav2vec2, "wav2vec2") if cls is transformers.Wav2Vec2ForCTC else (hubert, "hubert")
    model = weights.randomised(make(cls))
    loaded = weights.loaded(model)
    samples, mask = sound(40, 60)
    mine = jax.jit(model_of(loaded.config))(loaded.params, samples, mask)["last_hidden_state"]
    parity.close(mine, theirs(getattr(model, inner), samples, mask).last_hidden_state)
    save(weights.place / "ours", loaded.config, loaded.params, loaded.hf_config)
    kept = json.loads((weights.place / "ours" / "config.json").read_text())
    assert kept["model_type"] == inner and kept["num_samples"] == 160_000 and kept["vocab_size"] == 32


def test_older_spelling_and_no_mask_token(weights):
    """Files of torch before 2.1 say weight_g and weight_v; those of some tuned models have no mask token."""
    loaded = weights.loaded(weights.randomised(wav2vec2()))
    file = weights.place / "theirs" / "model.safetensors"
    tensors = load_file(file)
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        key = f"encoder.pos_conv_embed.conv.parametrizations.weight.{new}"
        tensors[f"wav2vec2.encoder.pos_conv_embed.conv.{old}"] = tensors.pop(key)
    del tensors["masked_spec_embed"]
    save_file(tensors, file, {"format": "pt"})
    older = load(weights.place / "theirs")
    assert loaded.config.mask_token and not older.config.mask_token
    rest = {key: leaf for key, leaf in loaded.params.items() if key != "mask_embedding"}
    jax.tree.map(np.testing.assert_array_equal, older.params, rest)
    save(weights.place / "ours", older.config, older.params, older.hf_config)
    _, info = transformers.Wav2Vec2Model.from_pretrained(weights.place / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # A config.json that masks nothing does not go with a mask token.
    nothing = {**older.hf_config, "mask_time_prob": 0.0, "model_type": "wav2vec2"}
    save(weights.place / "mask", loaded.config, loaded.params, nothing)
    assert load(weights.place / "mask").config == loaded.config


def test_what_does_not_fit_is_named(weights):
    weights.loaded(weights.randomised(hubert()))
    file = weights.place / "theirs" / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.pos_conv_embed.conv.parametrizations.weight.original0"]
    tensors["adapter.proj.weight"] = np.zeros(3, np.float32)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WeightsError) as error:
        load(weights.place / "theirs")
    assert "original0 (1, 1, 6), for our positions/gain" in str(error.value)
    assert "1 left over:\n  adapter.proj.weight (3,)" in str(error.value)
    path = weights.place / "theirs" / "config.json"
    hf = json.loads(path.read_text())
    for change, words in (
        ({"model_type": "wav2vec2", "add_adapter": True}, "add_adapter True is not supported"),
        ({"model_type": "wav2vec2", "adapter_attn_dim": 16}, "adapter_attn_dim 16 is not supported"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm: 'batch' is not one of 'group', 'layer'"),
        ({"feat_extract_activation": "selu"}, "feat_extract_activation 'selu' is not supported"),
    ):
        path.write_text(json.dumps({**hf, **change}))
        with pytest.raises(ConfigError, match=words):
            load(weights.place / "theirs")
