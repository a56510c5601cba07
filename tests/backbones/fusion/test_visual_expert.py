"""The visual expert against a slow second implementation, token by token, and as a copy of the text's maps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.backbones.fusion.visual_expert import VisualExpertConfig, expert_of_text
from mmjax.config import ConfigError, from_dict, to_dict
from mmjax.data.contracts import Batch, Media, TextStream
from mmjax.encoders.vit import ViTConfig
from mmjax.infer.cache import unstack
from mmjax.infer.generate import GenerateOptions, generate
from mmjax.model import MultimodalLM, MultimodalLMConfig
from mmjax.projectors.linear import LinearProjectorConfig

PLAIN = DecoderConfig(31, 12, 2, 6, 2, 4, 20, max_positions=32, qkv_bias=True)
BACKBONE = dataclasses.replace(PLAIN, fusion=VisualExpertConfig())
VIT = ViTConfig(
    image_size=6, patch_size=3, width=8, num_layers=1, num_heads=2, mlp_width=10, feature_strategy="patches"
)
CONFIG = MultimodalLMConfig(BACKBONE, {"image": VIT}, {"image": LinearProjectorConfig(8, 12)}, {"image": 30})
MODEL = MultimodalLM(CONFIG)
# Row 0 has one image of four tokens, row 1 two of them with a word between.
INDEX = np.full((2, 11), -1, np.int32)
INDEX[0, 2:6], INDEX[1, 1:5], INDEX[1, 6:10] = range(4), range(4), range(4, 8)
TOKENS = np.random.default_rng(0).integers(0, 29, INDEX.shape).astype(np.int32)
PIXELS = np.random.default_rng(1).normal(size=(2, 2, 6, 6, 3)).astype(np.float32)


def batch(tokens=TOKENS, index=INDEX):
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    text = TextStream(tokens, positions, np.ones_like(tokens), media_index=index)
    return Batch({"text": text}, {"image": Media(PIXELS)})


logits = jax.jit(lambda params, batch: MODEL(params, batch).logits)


@pytest.fixture(scope="module")
def params(slow):
    """Everything at random, biases and scales too."""
    return slow.drawn(MODEL)


def by_hand(backbone, x, is_media):
    """One text [T, D] through the blocks in numpy; each token with the maps of its own kind."""
    x = np.asarray(x, np.float64)
    angles = np.arange(len(x))[:, None] / 10000.0 ** (np.arange(2) / 2)
    turn = np.exp(1j * angles)[:, None]

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + PLAIN.norm_eps) * scale

    def rotated(heads):
        pairs = (heads[..., :2] + 1j * heads[..., 2:]) * turn
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    for layer in range(PLAIN.num_layers):
        pick = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf[layer], np.float64), tree)  # noqa: B023
        text, expert = pick(backbone["blocks"]), pick(backbone["fusion"]["blocks"])
        own = [expert if media else text for media in is_media]
        before = norm(x, text["attn_norm"]["scale"])
        q, k, v = (
            np.stack([
                np.tensordot(row, maps["attn"][name]["kernel"], 1) + maps["attn"][name]["bias"]
                for row, maps in zip(before, own, strict=True)
            ])
            for name in "qkv"
        )  # fmt: skip
        q, k = rotated(q), rotated(k)
        for at in range(len(x)):
            heads = []
            for head in range(6):
                scores = k[: at + 1, head // 3] @ q[at, head] / 2
                weights = np.exp(scores - scores.max())
                heads.append(weights / weights.sum() @ v[: at + 1, head // 3])
            x[at] += np.tensordot(np.stack(heads), own[at]["attn"]["o"]["kernel"], 2)
        before = norm(x, text["mlp_norm"]["scale"])
        for at, maps in enumerate(own):
            gate, up = (before[at] @ maps["mlp"][name]["kernel"] for name in ("gate", "up"))
            x[at] += (gate / (1 + np.exp(-gate)) * up) @ maps["mlp"]["down"]["kernel"]
    return norm(x, np.asarray(backbone["norm"]["scale"]))


def test_against_a_slow_implementation(params):
    media = jax.jit(MODEL.encode_media)(params, {"image": Media(PIXELS)})
    embeddings = jax.jit(MODEL.embed)(params, batch().text, media)
    hidden = jax.jit(MODEL.forward)(params, batch().texts, media)
    for row in range(2):
        wanted = by_hand(params["backbone"], embeddings[row], INDEX[row] >= 0)
        np.testing.assert_allclose(hidden[row], wanted, rtol=0, atol=2e-5)


def test_a_copy_of_the_text_is_the_text_model_bit_for_bit(params, exact):
    backbone = {name: part for name, part in params["backbone"].items() if name != "fusion"}
    copied = {**params, "backbone": {**backbone, "fusion": expert_of_text(backbone)}}
    plain = MultimodalLM(dataclasses.replace(CONFIG, backbone=PLAIN))
    wanted = jax.jit(plain.__call__, compiler_options=exact)({**params, "backbone": backbone}, batch()).logits
    mine = jax.jit(MODEL.__call__, compiler_options=exact)(copied, batch()).logits
    np.testing.assert_array_equal(mine, wanted)
    assert np.abs(logits(params, batch()) - wanted).max() > 1e-2


@pytest.mark.slow
def test_unstacked_blocks_and_decoding(params):
    """New tokens are text: they go through the text's maps alone."""
    np.testing.assert_allclose(logits(unstack(params), batch()), logits(params, batch()), atol=2e-5)
    out = generate(MODEL, params, batch(), GenerateOptions(max_new_tokens=3))
    tokens, index = (np.pad(a, ((0, 0), (0, 3)), constant_values=-1) for a in (TOKENS, INDEX))
    for step in range(3):
        scores = logits(params, batch(np.maximum(tokens, 0), index))
        tokens[:, 11 + step] = scores[:, 10 + step].argmax(axis=-1)
        np.testing.assert_array_equal(out.tokens[:, step], tokens[:, 11 + step])


def test_the_expert_learns_from_media_alone(params):
    @jax.jit
    @jax.grad
    def gradient(backbone, index):
        tree = {**params, "backbone": backbone}
        return jnp.mean(jnp.square(MultimodalLM(CONFIG, remat="full")(tree, batch(index=index)).logits))

    found = gradient(params["backbone"], INDEX)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found["fusion"]))
    none = gradient(params["backbone"], np.full_like(INDEX, -1))
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(none["fusion"]))


def test_what_cannot_be():
    assert from_dict(MultimodalLMConfig, to_dict(CONFIG)) == CONFIG
    with pytest.raises(ConfigError, match="visual_expert.* and backbone.parallel"):
        dataclasses.replace(BACKBONE, parallel=True)
    with pytest.raises(ConfigError, match="needs a backbone whose fusion reads media"):
        dataclasses.replace(CONFIG, inside=("image",), media_tokens={})
    shapes = MODEL.param_shapes()["backbone"]
    assert set(shapes["fusion"]["blocks"]) == {"attn", "mlp"} and set(shapes["blocks"]) > {"attn", "mlp"}
