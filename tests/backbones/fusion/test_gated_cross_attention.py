"""Gated cross-attention: the text model at first, who sees which image, both forms of blocks, generation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.backbones.fusion.gated_cross_attention import GatedCrossAttentionConfig
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.encoders.vit import ViTConfig
from mmjax.infer.cache import unstack
from mmjax.infer.generate import GenerateOptions, Programs, generate
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.mlp import MLPProjectorConfig

PLAIN = DecoderConfig(31, 12, 4, 6, 2, 4, 20, max_positions=32)
VIT = ViTConfig(
    image_size=6, patch_size=3, width=8, num_layers=1, num_heads=2, mlp_width=10, feature_strategy="patches"
)


def system(**options):
    fusion = GatedCrossAttentionConfig(media_width=10, **{"every": 2, **options})
    return MultimodalLMConfig(
        dataclasses.replace(PLAIN, fusion=fusion),
        {"image": VIT},
        {"image": MLPProjectorConfig(8, 16, 10)},
        inside=("image",),
    )


CONFIG = system(qk_norm=True)
MODEL = MultimodalLM(CONFIG)
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 7)).astype(np.int32)
PIXELS = np.random.default_rng(1).normal(size=(2, 3, 6, 6, 3)).astype(np.float32)
# The first tokens see nothing; then each sees the image before it; the third image of row 0 is padding.
SEEN = np.zeros((2, 7, 3), bool)
SEEN[0, 2:4, 0] = SEEN[0, 4:, 1] = SEEN[1, 1:5, 0] = SEEN[1, 5:, 2] = True
ITEMS = np.array([[1, 2, 0], [1, 2, 3]], np.int32)


def stream(tokens=TOKENS, seen=SEEN, segments=None):
    segments = np.ones_like(tokens) if segments is None else segments
    positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0).astype(np.int32)
    return TextStream(tokens, positions, segments, media_attention=seen)


@pytest.fixture(scope="module")
def params(slow):
    """Everything at random, the gates too."""
    return slow.drawn(MODEL)


@jax.jit
def logits(params, text, pixels):
    return MODEL(params, Batch({"text": text}, {"image": Media(pixels, ITEMS)})).logits


def test_a_fresh_model_is_its_text_model_bit_for_bit(slow):
    params = slow.fresh(MODEL)
    backbone = {name: part for name, part in params["backbone"].items() if name != "fusion"}
    plain = MultimodalLM(MultimodalLMConfig(PLAIN))
    wanted = jax.jit(plain.__call__)({"backbone": backbone}, Batch({"text": stream()})).logits
    np.testing.assert_array_equal(logits(params, stream(), PIXELS), wanted)


@pytest.mark.slow
def test_tokens_see_their_images_alone(params):
    whole = logits(params, stream(), PIXELS)
    changed = PIXELS.copy()
    changed[:, 0] += 1
    differ = np.abs(logits(params, stream(), changed) - whole).max(axis=-1) > 1e-5
    # Later tokens see those that saw the first image through self-attention; earlier ones see nothing of it.
    np.testing.assert_array_equal(differ, [[False] * 2 + [True] * 5, [False] + [True] * 6])
    changed = PIXELS.copy()
    changed[0, 2], changed[1, 1] = 9, 9  # padding, and an image that no token sees
    np.testing.assert_array_equal(logits(params, stream(), changed), whole)


def test_who_sees_what_of_several_ports_and_of_shared_rows():
    """Four tokens an image, numbered by segment_ids or counted; ports one after the other; rows with one owner."""
    tokens = np.arange(2 * 12 * 10, dtype=np.float32).reshape(2, 12, 10)
    numbers = np.repeat(ITEMS, 4, axis=1)
    wanted = np.repeat(SEEN, 4, axis=2)
    for media in (Media(tokens, numbers), Media(tokens)):
        values, seen = MODEL.inside(stream(), {"image": media})
        np.testing.assert_array_equal(values, tokens)
        np.testing.assert_array_equal(seen, wanted)
    seen = MODEL.inside(stream(seen=None), {"image": Media(tokens, numbers)})[1]
    np.testing.assert_array_equal(seen, np.broadcast_to((numbers > 0)[:, None], seen.shape))
    values, seen = MODEL.inside(stream(seen=SEEN[[1, 1]]), {"image": Media(tokens, numbers)}, np.array([1, 1]))
    np.testing.assert_array_equal(values, tokens[[1, 1]])
    np.testing.assert_array_equal(seen, wanted[[1, 1]])
    config = dataclasses.replace(
        CONFIG,
        encoders={"image": VIT, "video": VIT},
        projectors=dict.fromkeys(("image", "video"), CONFIG.projectors["image"]),
        inside=("image", "video"),
    )
    media = {"image": Media(tokens[:, :4]), "video": Media(tokens[:, 4:], np.maximum(numbers[:, 4:] - 1, 0))}
    values, seen = MultimodalLM(config).inside(stream(), media)
    np.testing.assert_array_equal(values, tokens)
    np.testing.assert_array_equal(seen, wanted)


@pytest.mark.slow
def test_both_forms_of_blocks(params):
    np.testing.assert_allclose(logits(unstack(params), stream(), PIXELS), logits(params, stream(), PIXELS), atol=1e-5)


@pytest.mark.slow
def test_every_leaf_gets_a_gradient(params):
    @jax.jit
    @jax.grad
    def gradient(fusion):
        tree = {**params, "backbone": {**params["backbone"], "fusion": fusion}}
        batch = Batch({"text": stream()}, {"image": Media(PIXELS, ITEMS)})
        return jnp.mean(jnp.square(MultimodalLM(CONFIG, remat="full")(tree, batch).logits))

    found = gradient(params["backbone"]["fusion"])
    assert all(np.abs(leaf).reshape(2, -1).max(axis=1).min() > 0 for leaf in jax.tree.leaves(found))


@pytest.fixture(scope="module")
def programs():
    return Programs(MODEL)


@pytest.mark.slow
@pytest.mark.parametrize("left", [True, False])
def test_generation_goes_on_with_what_the_last_token_saw(params, programs, left):
    """Greedy tokens against the whole sequence run anew for each of them; row 0 is two tokens shorter."""
    segments = np.ones_like(TOKENS)
    segments[0, slice(2) if left else slice(5, 7)] = 0
    batch = Batch({"text": stream(segments=segments)}, {"image": Media(PIXELS, ITEMS)})
    out = generate(MODEL, params, batch, GenerateOptions(max_new_tokens=3), programs)
    tokens, seen, kept = np.zeros((2, 10), np.int32), np.zeros((2, 10, 3), bool), np.zeros((2, 10), np.int32)
    lengths = segments.sum(axis=1)
    for row, length in enumerate(lengths):
        tokens[row, :length], kept[row, :length] = TOKENS[row, segments[row] > 0], 1
        seen[row, :length] = SEEN[row, segments[row] > 0]
    for step in range(3):
        last = lengths + step - 1
        scores = logits(params, stream(tokens, seen, kept), PIXELS)
        for row, at in enumerate(last):
            tokens[row, at + 1], kept[row, at + 1], seen[row, at + 1] = scores[row, at].argmax(), 1, seen[row, at]
            assert tokens[row, at + 1] == out.tokens[row, step]


def test_a_text_without_media(params):
    """The attention is left out; the gated MLPs stay."""
    alone = jax.jit(MODEL.__call__)(params, Batch({"text": stream(seen=None)})).logits
    np.testing.assert_allclose(alone, logits(params, stream(seen=np.zeros_like(SEEN)), PIXELS), atol=1e-5)


def test_what_cannot_be():
    assert from_dict(MultimodalLMConfig, to_dict(CONFIG)) == CONFIG
    with pytest.raises(ConfigError, match="fusion.every 3 does not divide backbone.num_layers 4"):
        system(every=3)
    with pytest.raises(ConfigError, match="projectors.image.width is 12; what its fusion reads is 10"):
        dataclasses.replace(CONFIG, projectors={"image": MLPProjectorConfig(8, 16, 12)})
    with pytest.raises(ConfigError, match="needs a backbone whose fusion reads media"):
        dataclasses.replace(CONFIG, backbone=PLAIN)
    own = MultimodalLM(system(num_heads=3, head_dim=5)).param_shapes()["backbone"]["fusion"]["blocks"]["attn"]
    assert [own[name]["kernel"].shape for name in "qko"] == [(2, 12, 3, 5), (2, 10, 3, 5), (2, 3, 5, 12)]
    with pytest.raises(ConfigError, match="fusion.num_heads must be at least 1, got 0"):
        system(num_heads=0)
    shape = MultimodalLM(system(gate="vector")).param_shapes()["backbone"]["fusion"]["blocks"]["attn_gate"].shape
    assert shape == (2, 12)
    with pytest.raises(ConfigError, match="fusion.gate"):
        GatedCrossAttentionConfig(10, gate="matrix")
