"""CLAP's text tower against transformers, with its projection and without."""

import jax
import numpy as np
import pytest
import torch
import transformers

import mmjax
from mmjax.config import ConfigError
from mmjax.encoders.bidirectional_text import BidirectionalTextConfig
from mmjax.interop.huggingface import clap_text, model_of

SIZES = dict(
    vocab_size=23, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=10,
    max_position_embeddings=14, projection_dim=7,
)  # fmt: skip
MODELS = {
    "tower": (transformers.ClapTextModel, dict(pad_token_id=3, type_vocab_size=2, hidden_act="relu")),
    "tower with its projection": (transformers.ClapTextModelWithProjection, dict(projection_hidden_act="gelu")),
}
COUNTED = r"(.*\.)?(position_ids|token_type_ids)"


def read(model, tokens, mask=None):
    with torch.no_grad():
        out = model(torch.tensor(tokens), None if mask is None else torch.tensor(mask))
    names = {"last_hidden_state": "last_hidden_state", "pooled": "pooler_output", "embeds": "text_embeds"}
    return {ours: out[name] for ours, name in names.items() if name in out}


def rows(pad, left):
    """Two texts, the second padded."""
    tokens = np.random.default_rng(3).integers(4, 23, (2, 9))
    mask = np.ones((2, 9), np.int64)
    place = slice(0, 4) if left else slice(5, None)
    tokens[1, place], mask[1, place] = pad, 0
    return tokens, mask


@pytest.mark.quick("tower with its projection")
@pytest.mark.parametrize("name", MODELS)
def test_tower(weights, parity, name):
    cls, options = MODELS[name]
    model = weights.randomised(cls(transformers.ClapTextConfig(**SIZES, **options)))
    loaded = weights.loaded(model)
    again = weights.again(loaded, cls, COUNTED)
    run = jax.jit(model_of(loaded.config))
    for left in (False, True):
        tokens, mask = rows(loaded.config.pad_id, left)
        wanted = read(model, tokens, mask)
        mine = run(loaded.params, tokens, mask > 0)
        # A text's first token may be padding, of which the tower pools nothing that anyone reads.
        for key, reference in wanted.items():
            seen = mask > 0 if key == "last_hidden_state" else mask[:, 0] > 0
            parity.close(mine[key][seen], reference[seen])
        for key, reference in read(again, tokens, mask).items():
            assert torch.equal(reference, wanted[key])
    assert ("embeds" in mine) == ("embeds" in wanted) == ("projection" in name)
    if "embeds" in mine:
        out = mmjax.from_pretrained(weights.place / "theirs")(input_ids=tokens, attention_mask=mask)
        np.testing.assert_array_equal(out.text_embeds, mine["embeds"])


def test_what_cannot_be_said_is_named():
    with pytest.raises(ConfigError, match="hidden_size 10 is not a multiple of num_attention_heads 3"):
        clap_text.config_from_hf({"hidden_size": 10, "num_attention_heads": 3})
    with pytest.raises(ConfigError, match="pad_token_id must be a token"):
        clap_text.config_from_hf({"pad_token_id": None})
    odd = BidirectionalTextConfig(5, 4, 1, 2, 2, 4, position="learned")
    with pytest.raises(ConfigError, match="CLAP's text tower has post_norm, pooled"):
        clap_text.config_to_hf(odd)
