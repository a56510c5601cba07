"""Fuyu against transformers: pixels straight into the LLM, in every form in which its processors have given them."""

import numpy as np
import pytest
import transformers

from mmjax.config import ConfigError
from mmjax.data.items import TokenPlanError
from mmjax.interop.huggingface import FAMILIES

TEXT = dict(
    vocab_size=83,
    hidden_size=36,
    intermediate_size=58,
    num_hidden_layers=2,
    num_attention_heads=6,
    max_position_embeddings=64,
    partial_rotary_factor=0.7,
)
IMAGE, NEWLINE, NUMBERS = 80, 79, 27


def build():
    text = transformers.PersimmonConfig(**TEXT, pad_token_id=0)
    return transformers.FuyuForCausalLM(transformers.FuyuConfig(text_config=text, patch_size=3, image_token_id=IMAGE))


def prompts(grids, left=True):
    """One image of each (lines, patches of a line), its lines ended by a token, and words before and after."""
    rng = np.random.default_rng(5)
    bodies = []
    for lines, columns in grids:
        image = ([IMAGE] * columns + [NEWLINE]) * lines
        bodies.append([*rng.integers(1, 79, 1), *image, *rng.integers(1, 79, 3)])
    longest = max(map(len, bodies))
    ids, mask = np.zeros((len(grids), longest), np.int64), np.zeros((len(grids), longest), np.int64)
    for row, body in enumerate(bodies):
        part = slice(longest - len(body), None) if left else slice(len(body))
        ids[row, part], mask[row, part] = body, 1
    patches = rng.normal(size=(int((ids == IMAGE).sum()), NUMBERS)).astype(np.float32)
    return dict(input_ids=ids, attention_mask=mask), patches


def test_fuyu(system):
    text, patches = prompts([(2, 3), (3, 2)])
    inputs = dict(text, pixel_values=patches.reshape(2, 6, NUMBERS))
    model = system.check(build(), inputs)
    assert "encoders" not in model.params and model.params["projectors"]["image"]["out"]["kernel"].shape == (27, 36)
    wanted = model(**inputs).logits
    indices = np.where(text["input_ids"] == IMAGE, np.cumsum(text["input_ids"] == IMAGE, axis=1) - 1, -1)
    for given in (dict(pixel_values=patches), dict(image_patches=[patches[:6], patches[6:]])):
        np.testing.assert_array_equal(model(**text, **given, image_patches_indices=indices).logits, wanted)

    # Images of two sizes, and a row without one.
    text, patches = prompts([(2, 4), (0, 0), (1, 3)], left=False)
    reference = type(build()).from_pretrained(system.place / "theirs").eval()
    inputs = dict(text, pixel_values=patches[None])
    system.close(inputs, model(**inputs).logits, system.logits(reference, inputs))
    with pytest.raises(TokenPlanError, match="there are 10 patches, but 11 placeholders: 8, 0, 3 in the rows"):
        model.batch(**text, pixel_values=patches[1:])
    with pytest.raises(ValueError, match="patches of 27 numbers"):
        model.batch(**text, pixel_values=patches[:, 1:])


def test_configs():
    family = FAMILIES["fuyu"]
    given = build().config.to_dict()
    config = family.config_from_hf(given)
    # The first files have the LLM's keys among the others.
    flat = {**given["text_config"], **{key: given[key] for key in ("model_type", "patch_size", "image_token_id")}}
    assert family.config_from_hf(flat) == config
    assert family.config_from_hf(family.config_to_hf(config, flat)) == config
    with pytest.raises(ConfigError, match="text_config.model_type 'bert' is not supported"):
        family.config_from_hf({"text_config": {"model_type": "bert"}})
    with pytest.raises(ConfigError, match="raw patches at the port 'image' alone"):
        family.config_to_hf(FAMILIES["paligemma"].config_from_hf(
            {"text_config": {"hidden_size": 2048, "num_hidden_layers": 1}}
        ))  # fmt: skip
