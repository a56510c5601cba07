"""KOSMOS-2 against transformers: a mask places the images, sines the tokens, norms stand inside the halves."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers

from mmjax.config import ConfigError
from mmjax.data.items import TokenPlanError
from mmjax.interop.huggingface import FAMILIES, family_of
from mmjax.model import MultimodalLMConfig

VISION = dict(hidden_size=30, intermediate_size=44, num_hidden_layers=2, num_attention_heads=5, patch_size=7)
TEXT = dict(vocab_size=83, embed_dim=36, layers=2, ffn_dim=46, attention_heads=6, max_position_embeddings=40)
LATENTS = 3


def build(**options):
    config = transformers.Kosmos2Config(
        text_config=dict(TEXT, eos_token_id=None, **options),
        vision_config=dict(VISION, image_size=21),
        latent_query_num=LATENTS,
    )
    return transformers.Kosmos2ForConditionalGeneration(config)


def prompts(before, lengths):
    """An image behind `before` tokens in each row, padded on the left with the one id that theirs takes for padding."""
    rng = np.random.default_rng(5)
    longest, rows = max(lengths), len(lengths)
    ids, mask = np.ones((rows, longest), np.int64), np.zeros((rows, longest), np.int64)
    mark = mask.copy()
    for row, (count, length) in enumerate(zip(before, lengths, strict=True)):
        first = longest - length
        ids[row, first:], mask[row, first:] = rng.integers(2, 83, length), 1
        mark[row, first + count : first + count + LATENTS] = 1
    pixels = rng.normal(size=(rows, 3, 21, 21)).astype(np.float32)
    return dict(input_ids=ids, attention_mask=mask, pixel_values=pixels, image_embeds_position_mask=mark)


@pytest.mark.parametrize(
    "options", [{}, pytest.param(dict(scale_embedding=False, activation_function="relu"), marks=pytest.mark.slow)]
)
def test_kosmos2(system, options):
    reference = build(**options)
    inputs = prompts([2, 5], [9, 9])
    model = system.check(reference, inputs)
    # Ids under an image do not matter.
    other = dict(inputs, input_ids=np.where(inputs["image_embeds_position_mask"], 7, inputs["input_ids"]))
    np.testing.assert_array_equal(model(**other).logits, model(**inputs).logits)
    out = model.generate(**inputs, max_new_tokens=2, eos_token_id=())
    np.testing.assert_array_equal(out.sequences[:, :9], inputs["input_ids"])

    padded = prompts([0, 3], [5, 9])
    system.close(padded, model(**padded).logits, system.logits(reference, padded))
    # What is generated goes on from the last position; theirs leaves a gap as wide as the padding.
    alone = {name: array[:1, 4:] if name != "pixel_values" else array[:1] for name, array in padded.items()}
    with torch.no_grad():
        theirs = reference.generate(
            **{name: torch.tensor(array) for name, array in alone.items()}, max_new_tokens=3, do_sample=False
        )
    ours = model.generate(**padded, max_new_tokens=3, eos_token_id=())
    np.testing.assert_array_equal(ours.tokens[:1], theirs[:, -3:].numpy())

    mark = inputs["image_embeds_position_mask"]
    with pytest.raises(TokenPlanError, match="0, 1 images a row, but there are 2 images"):
        model.batch(**dict(inputs, image_embeds_position_mask=mark * [[0], [1]]))
    with pytest.raises(ValueError, match=r"image_embeds_position_mask is \(2, 8\), input_ids is \(2, 9\)"):
        model.batch(**dict(inputs, image_embeds_position_mask=np.zeros((2, 8))))


def test_configs():
    family = FAMILIES["kosmos-2"]
    given = build().config.to_dict()
    config = family.config_from_hf(given)
    assert family.config_from_hf(family.config_to_hf(config)) == config
    # A file that says nothing is of the published sizes.
    silent = family.config_from_hf({})
    assert silent == family.config_from_hf(transformers.Kosmos2Config().to_dict())
    assert (silent.backbone.width, silent.num_tokens("image")) == (2048, 64)
    with pytest.raises(ConfigError, match="add_cross_attention True is not supported"):
        family.config_from_hf({"text_config": {"add_cross_attention": True}})
    with pytest.raises(ConfigError, match="no family .* backbone.sub_norm True"):
        family_of(MultimodalLMConfig(config.backbone))
    other = dataclasses.replace(config, media_tokens={"image": 5})
    with pytest.raises(ConfigError, match="would lose media_tokens.image 5"):
        family_of(other, {"model_type": "kosmos-2"})
