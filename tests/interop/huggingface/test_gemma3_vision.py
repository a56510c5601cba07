"""Gemma 3 with images against transformers: pooled images whose tokens see each other, windows included."""

import numpy as np
import pytest
import transformers

import mmjax
from mmjax.config import ConfigError
from mmjax.interop.huggingface import FAMILIES

VISION = dict(
    hidden_size=30,
    intermediate_size=44,
    num_hidden_layers=2,
    num_attention_heads=5,
    patch_size=7,
    image_size=42,
    vision_use_head=False,
)
TEXT = dict(
    vocab_size=83,
    hidden_size=36,
    intermediate_size=58,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    query_pre_attn_scalar=12,
    max_position_embeddings=64,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
)
IMAGE, TOKENS = 80, 9


def build(window):
    return transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            vision_config=transformers.SiglipVisionConfig(**VISION),
            text_config=transformers.Gemma3TextConfig(**TEXT, sliding_window=window),
            image_token_index=IMAGE,
            mm_tokens_per_image=TOKENS,
        )
    )


def prompts(rows):
    """input_ids and the rest, padded on the left: each row is a list of -1 for an image, or how many words."""
    rng = np.random.default_rng(5)
    bodies = [
        [token for part in row for token in ([IMAGE] * TOKENS if part < 0 else rng.integers(1, 79, part).tolist())]
        for row in rows
    ]
    longest = max(map(len, bodies))
    ids, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.int64)
    for row, body in enumerate(bodies):
        ids[row, longest - len(body) :], mask[row, longest - len(body) :] = body, 1
    pixels = rng.normal(size=(sum(part < 0 for row in rows for part in row), 3, 42, 42)).astype(np.float32)
    types = (ids == IMAGE).astype(np.int64)
    return dict(input_ids=ids, attention_mask=mask, pixel_values=pixels, token_type_ids=types)


@pytest.mark.parametrize("window", [4, pytest.param(11, marks=pytest.mark.slow)])
def test_gemma3(system, window):
    """A window of 4 tokens is shorter than an image: its later tokens are then all that it sees of it and beyond."""
    inputs = prompts([[2, -1, 3], [1, -1, 2, -1, 4]])
    model = system.check(build(window), inputs)
    typed = model.batch(**inputs).text
    untyped = model.batch(**{name: array for name, array in inputs.items() if name != "token_type_ids"}).text
    np.testing.assert_array_equal(typed.bidirectional_group, untyped.bidirectional_group)
    assert typed.bidirectional_group.max() == 2
    none = model(**dict(inputs, token_type_ids=0 * inputs["token_type_ids"])).logits
    assert np.abs(none - model(**inputs).logits).max() > 1e-2


def test_two_images_that_touch(system):
    """For transformers, whose token types cannot tell them apart, they are one; without token types they are two."""
    inputs = prompts([[1, -1, -1, 2]])
    reference = build(16).eval()
    reference.save_pretrained(system.place / "theirs")
    model = mmjax.from_pretrained(system.place / "theirs")
    system.close(inputs, model(**inputs).logits, system.logits(reference, inputs))
    group = model.batch(**{name: array for name, array in inputs.items() if name != "token_type_ids"}).text
    assert group.bidirectional_group[0].tolist() == [0] + [1] * 9 + [2] * 9 + [0] * 2


def test_configs():
    family = FAMILIES["gemma3"]
    given = build(8).config.to_dict()
    for tokens in (8, 16):
        with pytest.raises(ConfigError, match=f"mm_tokens_per_image {tokens} is not the square"):
            family.config_from_hf({**given, "mm_tokens_per_image": tokens})
    with pytest.raises(ConfigError, match="final_logit_softcapping 30.0 is not supported"):
        family.config_from_hf({**given, "text_config": {**given["text_config"], "final_logit_softcapping": 30.0}})
