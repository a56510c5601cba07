"""Emu3 against transformers: images in as codes, and images out with its own constraint and guidance."""

import types

import numpy as np
import pytest
import torch
import transformers

from mmjax.config import ConfigError
from mmjax.data.code_images import CodeImages
from mmjax.data.items import TokenPlanError
from mmjax.data.samples import Sample
from mmjax.infer.answers import Making, begun
from mmjax.infer.image_codes import WriteOptions
from mmjax.interop.huggingface import load, save
from mmjax.interop.huggingface.emu3 import FAMILY

PLACEHOLDER, BEGIN, ROW_END, FRAME_END, END, STOP = 80, 81, 82, 83, 84, 2
WORDS = {
    "<image>": PLACEHOLDER, "<|image token|>": BEGIN, "<|extra_200|>": ROW_END, "<|extra_201|>": FRAME_END,
    "<|image end|>": END, **{f"<|visual token {code:06d}|>": 40 + code for code in range(17)},
}  # fmt: skip
TEXT = dict(
    vocab_size=87, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=96, pad_token_id=0, bos_token_id=1, eos_token_id=STOP,
)  # fmt: skip
CODES = dict(
    base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1, attn_resolutions=[1], hidden_size=64,
    num_attention_heads=1, codebook_size=17, embed_dim=4, latent_channels=4, temporal_downsample_factor=2,
)  # fmt: skip


def build(words=WORDS):
    torch.manual_seed(0)
    config = transformers.Emu3Config(vq_config=CODES, text_config=TEXT, vocabulary_map=words)
    return transformers.Emu3ForConditionalGeneration(config)


@pytest.fixture(scope="module")
def both(module_weights):
    theirs = module_weights.randomised(build())
    theirs.save_pretrained(module_weights.place / "theirs")
    return theirs, module_weights.model(), module_weights.place


def logits(model, inputs):
    with torch.no_grad():
        out = model(**{name: torch.tensor(value) for name, value in inputs.items()}).logits.numpy()
    return out[inputs["attention_mask"] > 0]


def inputs(padded_rows):
    """Images of 4 x 6 and 6 x 4 pixels, of 2 x 3 and 3 x 2 codes, with the ends of their rows."""
    ids, mask = padded_rows([[(PLACEHOLDER, 2 * 4)], [(PLACEHOLDER, 3 * 3), (PLACEHOLDER, 2 * 4)]])
    pixels = np.random.default_rng(1).normal(size=(3, 3, 6, 6)).astype(np.float32)
    sizes = np.array([(4, 6), (6, 4), (4, 6)])
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "image_sizes": sizes}


def test_what_it_reads(both, padded_rows):
    (theirs, model, place), given = both, inputs(padded_rows)
    wanted = logits(theirs, given)
    found = np.asarray(model(**given).logits)[given["attention_mask"] > 0]
    assert np.abs(found - wanted).max() <= 1e-4 * max(1.0, float(np.sqrt(np.mean(np.square(wanted)))))
    model.save_pretrained(place / "ours")
    assert load(place / "ours").config == model.config
    again, info = type(theirs).from_pretrained(place / "ours", output_loading_info=True)
    # How often a norm was updated in training is no weight.
    assert all(name.endswith(".num_batches_tracked") for name in info["missing_keys"])
    assert not info["unexpected_keys"] and not info["mismatched_keys"], info
    np.testing.assert_allclose(logits(again.eval(), given), wanted, rtol=0, atol=1e-6)
    assert model.config.codes.first == 40 and model.config.codes.tail == (FRAME_END, END, STOP)
    # The words that images become are those of transformers.
    tokens = np.asarray(model.batch(**given).text.tokens)
    with torch.no_grad():
        wanted = theirs.model.get_image_tokens(torch.tensor(given["pixel_values"]), torch.tensor(given["image_sizes"]))
    np.testing.assert_array_equal(tokens[given["input_ids"] == PLACEHOLDER], wanted.numpy())
    assert len(np.unique(wanted.numpy())) > 3
    with pytest.raises(TokenPlanError, match="3 images become 25 tokens, but there are 24 placeholders: 7, 17"):
        given["input_ids"][0, -3] = 5
        model.batch(**given)


def allowed(height, width):
    """The constraint as Emu3's authors give it to transformers' generate."""

    def of_row(row, ids):
        offset = len(ids) - int((ids == BEGIN).nonzero()[0])
        if offset <= height * (width + 1):
            return [ROW_END] if offset % (width + 1) == 0 else list(range(40, 57))
        return [(FRAME_END, END, STOP)[offset - height * (width + 1) - 1]]

    return of_row


def prompts(rng=2, length=5):
    ids = np.random.default_rng(rng).integers(3, 39, (2, length))
    ids[:, -1] = BEGIN
    mask = np.ones_like(ids)
    ids[1, :2], mask[1, :2] = 0, 0
    return ids, mask


@pytest.mark.parametrize("scale", [pytest.param(1.0, marks=pytest.mark.slow), 3.0])
def test_what_it_draws(both, scale):
    theirs, model, _ = both
    ids, mask = prompts()
    guidance = {} if scale == 1 else {"guidance_scale": scale, "negative_prompt_ids": prompts(3, 4)[0]}
    with torch.no_grad():
        more = {name: torch.tensor(value) if np.ndim(value) else value for name, value in guidance.items()}
        wanted = theirs.generate(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False, max_new_tokens=11,
            prefix_allowed_tokens_fn=allowed(2, 3), **more,
        )[:, 5:]  # fmt: skip
        pixels = theirs.decode_image_tokens(image_tokens=wanted, height=2, width=3).numpy()
    out = model.generate(ids, mask, generation_mode="image", image_grid=(2, 3), **guidance)
    np.testing.assert_array_equal(out.tokens, wanted.numpy())
    assert len(np.unique(wanted.numpy())) > 6
    for row, image in enumerate(pixels.reshape(2, -1, 3, 4, 6)[:, 0].transpose(0, 2, 3, 1)):
        np.testing.assert_allclose(2 * out.images[row][0] - 1, np.clip(image, -1, 1), atol=1e-4)


@pytest.mark.slow
def test_an_image_is_as_large_as_is_asked_for(both):
    _, model, _ = both
    ids, mask = prompts()
    # A prompt that ends where an image begins is one whether it is asked for or not.
    again = model.generate(ids, mask, max_new_tokens=11, image_grid=(2, 3))
    plain = model.generate(ids, mask, generation_mode="image", image_grid=(2, 3))
    np.testing.assert_array_equal(again.tokens, plain.tokens)
    out = model.generate(ids, mask, generation_mode="image", image_grid=[(1, 2), (2, 1)])
    assert [row[0].shape for row in out.images] == [(2, 4, 3), (4, 2, 3)]


def test_codes_need_not_follow_one_another_in_the_vocabulary(tmp_path):
    shuffled = np.random.default_rng(0).permutation(17)
    words = {**WORDS, **{f"<|visual token {code:06d}|>": int(40 + shuffled[code]) for code in range(17)}}
    build(words).save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    assert loaded.config.codes.ids == tuple(40 + shuffled)
    # Also without the first config.json.
    save(tmp_path / "ours", loaded.config, loaded.params)
    assert load(tmp_path / "ours").config == loaded.config
    again, info = transformers.Emu3ForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert again.config.vocabulary_map == words


class Words:
    """Stands for a tokenizer: Emu3's names of what begins an image, and digits."""

    named_tokens = {"boi_token": "<|image start|>"}  # noqa: RUF012 (never changed)
    special_tokens = {"<|image start|>": 85, **{word: WORDS[word] for word in list(WORDS)[1:5]}}  # noqa: RUF012

    @staticmethod
    def token_id(token):
        return {"<|image start|>": 85}[token]

    @staticmethod
    def encode(text, continued=False):
        return [3 + "0123456789*".index(sign) for sign in text]


def test_a_prompt_of_words_says_how_large_its_image_shall_be(both):
    _, model, _ = both
    ids = np.array([9, 7, 8], np.int32)
    sample = Sample(ids, np.arange(3, dtype=np.int32), np.zeros(3, np.float32), np.full(3, -1, np.int32))
    processor = types.SimpleNamespace(tokenizer=Words, images={})
    for grid, size in ((None, (90, 90)), ((12, 30), (12, 30))):
        making = Making(write=WriteOptions("image", grid=grid))
        longer = begun(model.module, sample, making, processor)
        wanted = [9, 7, 8, 85, *Words.encode("{}*{}".format(*size)), BEGIN]
        assert longer.tokens.tolist() == wanted and longer.positions.tolist() == list(range(len(wanted)))
        assert set(longer.media_index.tolist()) == {-1} and longer.num_targets == 0
        # What the recipe says of images that are learned is what begins one that is written.
        before = "<|image start|>{height}*{width}<|image token|>"
        told = CodeImages(8, 8, before, "<|extra_201|><|image end|>")
        taught = types.SimpleNamespace(tokenizer=Words, images={"image": told})
        assert begun(model.module, sample, making, taught).tokens.tolist() == wanted
    assert begun(model.module, sample, Making(write=WriteOptions("interleaved")), processor) is sample
    with pytest.raises(ValueError, match="negative_prompt: wanted is a model with a tokenizer"):
        model.generate(prompts()[0], generation_mode="image", negative_prompt="word")


def test_what_is_not_supported_is_named():
    hf = build().config.to_dict()
    words = {name: token for name, token in WORDS.items() if "000003" not in name}
    with pytest.raises(ConfigError, match=r"no '<\|visual token 000003\|>', one of 1 words"):
        FAMILY.config_from_hf({**hf, "vocabulary_map": words})
