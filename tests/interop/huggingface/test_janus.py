"""Janus against transformers: what it sees, the codes that it draws with guidance, and their pixels."""

import numpy as np
import pytest
import torch
import transformers

import mmjax
from mmjax.config import ConfigError
from mmjax.interop.huggingface.janus import FAMILY

PLACEHOLDER, BEGIN = 80, 81
TEXT = dict(
    model_type="llama", vocab_size=83, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    pad_token_id=0,
)  # fmt: skip
VISION = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2.5, image_size=9, patch_size=3,
    projection_dim=32, num_image_tokens=9,
)  # fmt: skip
CODES = dict(
    base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1, embed_dim=5, num_embeddings=19, latent_channels=6,
    projection_dim=32, image_token_embed_dim=32,
)  # fmt: skip


def build(**text):
    config = transformers.JanusConfig(
        vision_config=VISION, vq_config=CODES, text_config={**TEXT, **text}, image_token_id=PLACEHOLDER
    )
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    return transformers.JanusForConditionalGeneration(config)


def test_what_it_sees(system, padded_rows):
    ids, mask = padded_rows([[(PLACEHOLDER, 9)], [(PLACEHOLDER, 9), (PLACEHOLDER, 9)]])
    pixels = np.random.default_rng(1).normal(size=(3, 3, 9, 9)).astype(np.float32)
    system.check(build(), {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})


@pytest.fixture(scope="module")
def drawn(module_weights):
    """Theirs and ours, with weights at random; what follows the prompts' last token is an image."""
    theirs = module_weights.randomised(build())
    theirs.generation_config.update(bos_token_id=1, pad_token_id=0, eos_token_id=2)
    theirs.generation_config.generation_kwargs = {"boi_token_id": BEGIN}
    theirs.save_pretrained(module_weights.place / "theirs")
    return theirs, module_weights.model()


def prompts():
    ids = np.random.default_rng(2).integers(3, 79, (2, 6))
    ids[:, 0], ids[:, -1] = 1, BEGIN
    mask = np.ones_like(ids)
    ids[1, :3], mask[1, :2] = (0, 0, 1), 0
    return ids, mask


def test_what_it_draws(drawn):
    theirs, model = drawn
    ids, mask = prompts()
    with torch.no_grad():
        wanted = theirs.generate(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), generation_mode="image",
            do_sample=False, guidance_scale=3.0,
        )  # fmt: skip
        pixels = theirs.decode_image_tokens(wanted).numpy()
    out = model.generate(ids, mask, generation_mode="image", guidance_scale=3.0)
    np.testing.assert_array_equal([row[0].reshape(-1) for row in out.image_codes], wanted.numpy())
    assert len(np.unique(wanted.numpy())) > 2 and (out.lengths == 9).all()
    np.testing.assert_array_equal(out.tokens, 83 + wanted.numpy())
    for image, found in zip(pixels, out.images, strict=True):
        assert found[0].shape == (6, 6, 3)
        assert (np.abs(image) < 1).mean() > 0.05
        np.testing.assert_allclose(2 * found[0] - 1, np.clip(image, -1, 1), atol=1e-4)


def test_guidance_is_data(drawn):
    _, model = drawn
    ids, mask = prompts()
    drawings = {}
    for scale in (3.0, 7.5):
        drawings[scale] = model.generate(ids, mask, generation_mode="image", guidance_scale=scale).tokens
    compiled = dict(model.programs.compilations)
    model.generate(ids, mask, generation_mode="image", guidance_scale=4.25)
    assert dict(model.programs.compilations) == compiled
    assert (drawings[3.0] != drawings[7.5]).any()


def test_draws_again_after_the_way_out_and_back(drawn, tmp_path):
    theirs, model = drawn
    ids, mask = prompts()
    model.save_pretrained(tmp_path / "ours")
    again = mmjax.from_pretrained(tmp_path / "ours")
    assert again.config == model.config
    options = dict(generation_mode="image", do_sample=False, guidance_scale=3.0)
    back, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    # Their reader drops what only Janus has in it.
    back.generation_config = theirs.generation_config
    with torch.no_grad():
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        wanted = theirs.generate(**given, **options)
        np.testing.assert_array_equal(back.eval().generate(**given, **options), wanted)
    out = again.generate(ids, mask, generation_mode="image", guidance_scale=3.0)
    np.testing.assert_array_equal(out.tokens - 83, wanted.numpy())


def test_text_stays_text(drawn):
    _, model = drawn
    ids, mask = prompts()
    out = model.generate(ids, mask, max_new_tokens=4, eos_token_id=())
    assert (out.tokens < 83).all() and out.image_codes == [[], []]
    with pytest.raises(ValueError, match='guidance_scale: generation_mode "text" writes no images'):
        model.generate(ids, mask, guidance_scale=2.0)


def test_what_is_not_supported_is_named():
    hf = build().config.to_dict()
    for part, key, value, message in (
        ("vision_config", "use_qk_norm", True, "use_qk_norm True"),
        ("vision_config", "depth", 3, "depth 3"),
        ("vision_config", "num_image_tokens", 8, "num_image_tokens 8; an image is of 3 x 3 codes"),
        ("vq_config", "num_hidden_layers", 1, "num_hidden_layers 1"),
        ("vq_config", "image_token_embed_dim", 16, "image_token_embed_dim must be the LLM's width 32"),
    ):
        with pytest.raises(ConfigError, match=message):
            FAMILY.config_from_hf({**hf, part: {**hf[part], key: value}})
