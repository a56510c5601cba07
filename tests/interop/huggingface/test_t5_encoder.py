"""The encoders of T5 and UMT5 alone against transformers, with padding on either side and without a mask."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import mmjax
from mmjax.config import ConfigError
from mmjax.encoders.bidirectional_text import BidirectionalTextConfig
from mmjax.interop.huggingface import load, model_of, t5_encoder

SIZES = dict(
    vocab_size=23, d_model=10, d_kv=3, d_ff=14, num_layers=2, num_heads=4, relative_attention_num_buckets=6,
    relative_attention_max_distance=7,
)  # fmt: skip
MODELS = {
    "t5": (transformers.T5EncoderModel, transformers.T5Config, dict(feed_forward_proj="relu")),
    "umt5": (transformers.UMT5EncoderModel, transformers.UMT5Config, dict(feed_forward_proj="gated-gelu")),
}


def build(weights, name):
    cls, config, options = MODELS[name]
    return weights.randomised(cls(config(**SIZES, **options)))


def read(model, tokens, mask):
    with torch.no_grad():
        return model(torch.tensor(tokens), None if mask is None else torch.tensor(mask)).last_hidden_state


@pytest.mark.parametrize("name", MODELS)
def test_encoder(weights, parity, name):
    model = build(weights, name)
    loaded = weights.loaded(model)
    again = weights.again(loaded, type(model))
    run = jax.jit(model_of(loaded.config))
    tokens = np.random.default_rng(3).integers(1, 23, (3, 11))
    mask = np.ones((3, 11), np.int64)
    mask[1, 7:], mask[2, :3] = 0, 0
    for seen in (mask, None):
        wanted = read(model, tokens, seen)
        mine = run(loaded.params, tokens, None if seen is None else seen > 0)
        assert set(mine) == {"last_hidden_state"}
        # Every place, padding too: some pipelines hand all of them on.
        parity.close(mine["last_hidden_state"], wanted)
        assert torch.equal(read(again, tokens, seen), wanted)
    user = mmjax.from_pretrained(weights.place / "ours")
    np.testing.assert_array_equal(user(input_ids=tokens).last_hidden_state, mine["last_hidden_state"])


def test_out_of_a_file_of_the_whole(weights):
    whole = weights.randomised(transformers.T5ForConditionalGeneration(transformers.T5Config(**SIZES)))
    whole.save_pretrained(weights.place)
    path = weights.place / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["T5EncoderModel"]}))
    loaded = load(weights.place)
    assert isinstance(loaded.config, BidirectionalTextConfig)
    names = load_file(weights.place / "model.safetensors")
    np.testing.assert_array_equal(loaded.params["norm"]["scale"], names["encoder.final_layer_norm.weight"])
    assert not any("cross" in name for name in loaded.params["blocks"])


def test_what_cannot_be_said_is_named():
    assert t5_encoder.config_from_hf({"model_type": "umt5"}).gated
    with pytest.raises(ConfigError, match="feed_forward_proj 'swishy' is not supported"):
        t5_encoder.config_from_hf({"model_type": "t5", "feed_forward_proj": "swishy"})
    odd = BidirectionalTextConfig(5, 4, 1, 2, 2, 4, use_bias=True)
    with pytest.raises(ConfigError, match="T5's encoder has norm 'rms'"):
        t5_encoder.config_to_hf(odd)
