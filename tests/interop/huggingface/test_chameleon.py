"""Chameleon against transformers: images in as codes, heads normed apart; and images out, which theirs never writes."""

import numpy as np
import pytest
import torch
import transformers

from mmjax.config import ConfigError
from mmjax.interop.huggingface.chameleon import FAMILY

PLACEHOLDER, BEGIN, END = 80, 81, 82
WORDS = {"<image>": PLACEHOLDER, "<racm3:break>": BEGIN, "<eoss>": END}
WORDS |= {f"IMGIMG{''.join('ABCDEFGHIJ'[int(digit)] for digit in str(code))}Z": 40 + code for code in range(23)}
SIZES = dict(
    vocab_size=85, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=96, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
CODES = dict(
    base_channels=32, channel_multiplier=[1, 1, 2], num_res_blocks=1, embed_dim=4, num_embeddings=23, latent_channels=7,
    resolution=12, attn_resolutions=None,
)  # fmt: skip


def build(**changes):
    torch.manual_seed(0)
    config = transformers.ChameleonConfig(vq_config=CODES, vocabulary_map=WORDS, **SIZES | changes)
    return transformers.ChameleonForConditionalGeneration(config)


def randomised(model):
    """As `System.check` draws them, with codes where latents are."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = "norm" in name and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + float(scale))
    return model.eval()


@pytest.fixture(scope="module")
def both(module_weights):
    theirs = randomised(build())
    theirs.save_pretrained(module_weights.place / "theirs")
    return theirs, module_weights.model(), module_weights.place


@pytest.fixture
def inputs(padded_rows):
    ids, mask = padded_rows([[(PLACEHOLDER, 9)], [(PLACEHOLDER, 9), (PLACEHOLDER, 9)]])
    pixels = np.random.default_rng(1).normal(size=(3, 3, 12, 12)).astype(np.float32)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def logits(model, inputs):
    with torch.no_grad():
        return model(**{name: torch.tensor(value) for name, value in inputs.items()}).logits.numpy()


def test_what_it_reads(both, inputs):
    theirs, model, place = both
    tokens = np.asarray(model.batch(**inputs).text.tokens)
    with torch.no_grad():
        wanted = theirs.model.get_image_tokens(torch.tensor(inputs["pixel_values"])).numpy()
    np.testing.assert_array_equal(tokens[inputs["input_ids"] == PLACEHOLDER], wanted.reshape(-1))
    # Codes and text between them, given as they are, are the same prompt.
    interleaved = {"input_ids": tokens, "attention_mask": inputs["attention_mask"]}
    seen = inputs["attention_mask"] > 0
    found = [np.asarray(model(**given).logits)[seen] for given in (inputs, interleaved)]
    np.testing.assert_array_equal(*found)
    asked = logits(theirs, inputs)[seen]
    # Their class never says a code; all else is compared.
    is_code = np.isin(np.arange(85), model.config.codes.tokens())
    assert (asked[:, is_code] == np.finfo(np.float32).min).all()
    bound = 1e-4 * max(1.0, float(np.sqrt(np.mean(np.square(asked[:, ~is_code])))))
    assert np.abs(found[0] - asked)[:, ~is_code].max() <= bound
    model.save_pretrained(place / "ours")
    again, info = type(theirs).from_pretrained(place / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    np.testing.assert_allclose(logits(again.eval(), inputs)[seen], asked, rtol=0, atol=1e-6)


def test_text_is_theirs_token_for_token(both, inputs):
    theirs, model, _ = both
    options = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        given = {name: torch.tensor(value) for name, value in inputs.items()}
        wanted = theirs.generate(**given, **options)[:, -5:].numpy()
    out = model.generate(**inputs, max_new_tokens=5, generation_mode="text", eos_token_id=())
    np.testing.assert_array_equal(out.tokens, wanted)


def test_it_writes_whole_images_of_codes_and_reads_them_again(both):
    _, model, _ = both
    ids = np.array([[1, 5, 6, BEGIN], [1, 7, 8, 9]])
    out = model.generate(ids, max_new_tokens=14, eos_token_id=())
    assert out.images is None and out.image_codes[0][0].shape == (3, 3)
    np.testing.assert_array_equal(out.tokens[0, :9], 40 + out.image_codes[0][0].reshape(-1))
    assert out.tokens[0, 9] == END and out.tokens[0, 10] < 40 or out.tokens[0, 10] > 62
    # What was written goes on as what is read.
    longer = model.generate(out.sequences[:1, :8], max_new_tokens=6, eos_token_id=())
    np.testing.assert_array_equal(longer.tokens[0], out.tokens[0, 4:10])
    np.testing.assert_array_equal(longer.image_codes[0][0], out.image_codes[0][0])


def test_what_is_not_supported_is_named():
    with pytest.raises(ConfigError, match="swin_norm True is not supported, only False"):
        FAMILY.config_from_hf({**build().config.to_dict(), "swin_norm": True})
