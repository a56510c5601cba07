"""PaliGemma against transformers: what stands before the answer sees all of itself, with token types and without."""

import numpy as np
import pytest
import torch
import transformers

from mmjax.config import ConfigError
from mmjax.interop.huggingface import FAMILIES

VISION = dict(
    hidden_size=30,
    intermediate_size=44,
    num_hidden_layers=2,
    num_attention_heads=5,
    patch_size=7,
    image_size=21,
    vision_use_head=False,
)
TEXT = dict(
    vocab_size=83,
    hidden_size=36,
    intermediate_size=58,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    max_position_embeddings=64,
)
IMAGE, TOKENS = 80, 9


def build(text=transformers.GemmaConfig, **options):
    return transformers.PaliGemmaForConditionalGeneration(
        transformers.PaliGemmaConfig(
            vision_config=transformers.SiglipVisionConfig(**VISION),
            text_config=text(**TEXT, **options),
            image_token_index=IMAGE,
            projection_dim=36,
        )
    )


def prompts(lengths, left=True):
    """An image and so many tokens of text in each row, padded on one side."""
    rng = np.random.default_rng(5)
    longest = TOKENS + max(lengths)
    ids, mask = np.zeros((len(lengths), longest), np.int64), np.zeros((len(lengths), longest), np.int64)
    for row, length in enumerate(lengths):
        body = [IMAGE] * TOKENS + list(rng.integers(1, 79, length))
        part = slice(longest - len(body), None) if left else slice(len(body))
        ids[row, part], mask[row, part] = body, 1
    pixels = rng.normal(size=(len(lengths), 3, 21, 21)).astype(np.float32)
    return dict(input_ids=ids, attention_mask=mask, pixel_values=pixels)


def typed(inputs):
    """token_type_ids of a prompt, and those where the last two tokens, in the second row five, are an answer."""
    types = np.zeros_like(inputs["input_ids"])
    answered = types.copy()
    answered[0, -2:] = answered[1, -5:] = 1
    return types, answered


def test_windows_of_paligemma2(system):
    """The prefix is longer than the window and sees all of itself; what follows is held to it."""
    inputs = prompts([4, 7])
    types, answered = typed(inputs)
    reference = build(transformers.Gemma2Config, sliding_window=5)
    model = system.check(reference, dict(inputs, token_type_ids=types), rows=dict(inputs, token_type_ids=answered))
    assert not model.config.backbone.window_pairs


def test_paligemma(whole_system):
    reference, inputs = build(), prompts([4, 7])
    types, answered = typed(inputs)
    rows = dict(inputs, token_type_ids=answered)
    model = whole_system.check(reference, dict(inputs, token_type_ids=types), rows=rows)

    labels = np.where(answered == 1, inputs["input_ids"], -100)
    with torch.no_grad():
        theirs = reference(**{name: torch.tensor(value) for name, value in dict(rows, labels=labels).items()})
    # Labels alone say the same: the prefix ends before the first.
    out = model(**inputs, labels=labels)
    whole_system.close(rows, out.logits, theirs.logits)
    np.testing.assert_allclose(out.loss, theirs.loss.numpy(), atol=1e-4, rtol=0)
    # Theirs counts positions from one.
    counted = np.maximum(np.cumsum(inputs["attention_mask"], axis=1), 1)
    whole_system.close(rows, model(**rows, position_ids=counted).logits, theirs.logits)
    # Generating without token types is generating with all of the prompt as prefix.
    plain = model.generate(**inputs, max_new_tokens=3, eos_token_id=())
    told = model.generate(**inputs, token_type_ids=types, max_new_tokens=3, eos_token_id=())
    np.testing.assert_array_equal(plain.tokens, told.tokens)

    whole = {name: array[1:] for name, array in inputs.items()}
    # Without token types, theirs has the prompt as prefix where nothing is padded.
    whole_system.close(whole, model(**whole).logits, whole_system.logits(reference, whole))
    causal = model(**whole, token_type_ids=np.ones_like(whole["input_ids"])).logits
    assert np.abs(causal - model(**whole).logits)[0, 0].max() > 1e-3
    with pytest.raises(ValueError, match=r"token_type_ids are \(2, 3\): input_ids is \(1, 16\)"):
        model(**whole, token_type_ids=np.zeros((2, 3), int))


def test_configs():
    family = FAMILIES["paligemma"]
    given = build().config.to_dict()
    with pytest.raises(ConfigError, match="projection_dim 35 is not text_config.hidden_size 36"):
        family.config_from_hf({**given, "projection_dim": 35})
    with pytest.raises(ConfigError, match="text_config.use_bidirectional_attention False is not supported"):
        family.config_from_hf({**given, "text_config": {**given["text_config"], "use_bidirectional_attention": False}})
    # What the first published files say.
    silent = {key: value for key, value in given.items() if key != "tie_word_embeddings"}
    silent["text_config"] = {k: v for k, v in given["text_config"].items() if k != "use_bidirectional_attention"}
    assert family.config_from_hf(silent) == family.config_from_hf(given)
    causal = FAMILIES["llava"].config_from_hf(
        {"vision_config": given["vision_config"], "text_config": {**TEXT, "model_type": "llama"}}
    )
    with pytest.raises(ConfigError, match="PaliGemma"):
        family.config_to_hf(causal)
